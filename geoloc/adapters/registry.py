"""Registry of published models: source, licences, preprocessing and published numbers.

Facts only; nothing here loads a model, and PyTorch is not needed to read the list.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

Gives = Literal[
    "coordinates", "places of a gallery", "countries and cities", "embeddings", "location samples"
]
SAMPLES: Final = "location samples"  # value of `PublishedModel.gives`

OSV5M_CELLS_URL: Final = (
    "https://raw.githubusercontent.com/gastruc/osv5m/4e6075387ecde4255410785ffb83830c9aa099f6/"
    "utils/quadtree_10_1000.csv"
)
OSV5M_CELLS_SHA256: Final = "c08a6f4f903bdfaf94c0c73bf7ae3a00d028a939a659089789703da4d877f796"

WEIGHTS: Final = (
    "model.safetensors",
    "pytorch_model.bin",
)  # files of a repository on the Hub; the first that exists is taken
FILE_SUFFIXES: Final = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")  # suffixes of files of tensors

# DINOv2 ViT-L/14 with registers, which its authors publish outside the Hub; either file works.
DINOV2_L14_REGISTERS: Final = "timm/vit_large_patch14_reg4_dinov2.lvd142m"
STREETCLIP: Final = "geolocal/StreetCLIP"
CLIP_L14: Final = "openai/clip-vit-large-patch14"
CLIP_TOWER_FILES: Final = ("config.json", "model.safetensors")

_VPR_NUMBERS = "R@1 within 25 m on Pitts30k, MSLS and others, in its README and paper"


@dataclass(frozen=True)
class PublishedModel:
    """One published model.

    Attributes:
        name: its name, for `from_pretrained` if `is_fetched`.
        gives: kind of output.
        weights: source of the weights.
        code_licence: licence of its authors' code.
        weights_licence: licence of the weights, as stated by their authors.
        pictures: preprocessing.
        numbers: source of its published numbers.
        adapter: module that reads it.
        files: file patterns to download from a repository on the Hub; empty for models given by path.
        revision: pinned commit; None downloads the main branch by default.
        how: how to load it, or why it cannot be loaded.
        package: folder inside an installed Python package that contains it; the package is not imported.
    """

    name: str
    gives: Gives
    weights: str
    code_licence: str
    weights_licence: str
    pictures: str
    numbers: str
    adapter: str
    files: tuple[str, ...] = field(default=())
    revision: str | None = None
    how: str = ""
    package: str = ""

    @property
    def is_fetched(self) -> bool:
        """Whether its name is a repository on the Hub that `from_pretrained` downloads."""
        return bool(self.files)


def _plonk(data: str, suffix: str, how: str) -> PublishedModel:
    name, is_street = f"nicolas-dufour/PLONK_{data}{suffix}", data == "OSV_5M"
    tower = f"{STREETCLIP} (CC-BY-NC 4.0)" if is_street else f"{DINOV2_L14_REGISTERS} (Apache-2.0)"
    shortest = "336 px, shorter side bicubic, centre; CLIP mean and std"
    square = "336 px, the centre's square, bicubic; ImageNet mean and std"
    numbers = {"PLONK_OSV_5M": "GeoScore 3767 on OSV-5M's test: its paper (Dufour et al., CVPR 2025)"}
    return PublishedModel(
        name=name,
        gives=SAMPLES,
        weights=f"Hub: {name} (not pinned: give revision=); image tower, Hub: {tower} (not pinned)",
        code_licence="MIT",
        weights_licence="MIT, as its code writes its page; the image tower's is its own",
        pictures=shortest if is_street else square,
        numbers=numbers.get(name.partition("/")[2], "its paper (Dufour et al., CVPR 2025)"),
        adapter="plonk",
        files=("config.json", "model.safetensors"),
        how=f"{how}. geoloc.localize.sampler.LocationSampler.from_pretrained, or geoloc localize --model; tower= "
        "the image tower's files. Its predictions are not calibrated. Not for the search of references",
    )


MODELS: Final[tuple[PublishedModel, ...]] = (
    PublishedModel(
        name="osv5m/baseline",
        gives="coordinates",
        weights="Hub: osv5m/baseline (not pinned: give revision=)",
        code_licence="MIT",
        weights_licence="MIT",
        pictures="224 px, shorter side bicubic, centre; CLIP mean and std",
        numbers="GeoScore 3361, mean 1814 km on OSV-5M's test: its model card",
        adapter="osv5m",
        files=("config.json", "model.safetensors"),
        how="its 11,399 cells come from gastruc/osv5m at commit 4e60753, checked by sha256; or give quadtree=",
    ),
    PublishedModel(
        name="osv5m-training",
        gives="coordinates",
        weights="a .ckpt that OSV-5M's trainer wrote, by path",
        code_licence="MIT",
        weights_licence="whoever trained it",
        pictures="the tower's size, shorter side bicubic, centre; CLIP mean and std, ResNet-50: ImageNet's",
        numbers="OSV-5M's paper (Astruc et al., CVPR 2024), by experiment",
        adapter="osv5m",
        how="all its towers and heads. Give tower= a CLIP's name on the Hub (openai/clip-vit-base-patch32 where it "
        "began from nothing), quadtree= where it classifies cells, places= where countries, regions, areas or "
        "cities (index_to_gps_unique_….pt or …_center.csv), lora_alpha= where not 256",
    ),
    PublishedModel(
        name="geoclip",
        gives="places of a gallery",
        weights="the Python package geoclip; image tower, Hub: openai/clip-vit-large-patch14 (not pinned)",
        code_licence="MIT",
        weights_licence="MIT; trained on MP-16 (Flickr); the tower: MIT",
        pictures="224 px, shorter side bicubic, centre; CLIP mean and std",
        numbers="Im2GPS3k 34.5 % within 25 km and others: its paper and README",
        adapter="geoclip",
        how="pip install --no-deps geoclip; tower= a folder with the image tower, else it is fetched. "
        "The 100,000 places are encoded once and cached",
        package="geoclip/model",
    ),
    PublishedModel(
        name="VicenteVivanco/geoclip-geolocation",
        gives="places of a gallery",
        weights="Hub: VicenteVivanco/geoclip-geolocation (not pinned: give revision=); tower at the commit it names",
        code_licence="MIT",
        weights_licence="MIT; trained on MP-16 (Flickr); the tower: MIT",
        pictures="224 px, shorter side bicubic, centre; CLIP mean and std",
        numbers="Im2GPS3k 34.5 % within 25 km and others: its paper and README",
        adapter="geoclip",
        files=("config.json", "model.safetensors", "*.csv"),
        how="tower= a folder with the image tower, else it is fetched, too",
    ),
    PublishedModel(
        name=STREETCLIP,
        gives="countries and cities",
        weights="Hub: geolocal/StreetCLIP (not pinned: give revision=)",
        code_licence="none published",
        weights_licence="CC-BY-NC 4.0",
        pictures="336 px, shorter side bicubic, centre; CLIP mean and std",
        numbers="Im2GPS and Im2GPS3k: its paper (Haas et al., 2023) and model card",
        adapter="streetclip",
        files=("config.json", "model.safetensors"),
        how="geoloc.localize.zero_shot.ZeroShot.from_pretrained chooses among names; Geolocalizer has its "
        "image side as an embedding",
    ),
    PublishedModel(
        name="cosplace",
        gives="embeddings",
        weights="github.com/gmberton/CosPlace, release v1.0: {backbone}_{dim}_cosplace.pth, by path",
        code_licence="MIT",
        weights_licence="MIT (trained on Street View pictures, see its issue 35)",
        pictures="native size, as published; ImageNet mean and std; image_size_px=512: shorter side bilinear, centre",
        numbers=_VPR_NUMBERS,
        adapter="place_recognition",
        how="give the file's path",
    ),
    PublishedModel(
        name="eigenplaces",
        gives="embeddings",
        weights="github.com/gmberton/EigenPlaces, release v1.0: {backbone}_{dim}_eigenplaces.pth, by path",
        code_licence="MIT",
        weights_licence="MIT (trained on Street View pictures)",
        pictures="native size, as published; ImageNet mean and std; image_size_px=512: shorter side bilinear, centre",
        numbers=_VPR_NUMBERS,
        adapter="place_recognition",
        how="give the file's path",
    ),
    PublishedModel(
        name="conv-ap",
        gives="embeddings",
        weights="linked from github.com/amaralibey/gsv-cities: resnet50_ConvAP_….ckpt, by path",
        code_licence="none stated in its repository",
        weights_licence="none stated in its repository",
        pictures="320 x 320 px, squashed, bilinear (the one of 4096 numbers bicubic); ImageNet mean and std",
        numbers=_VPR_NUMBERS,
        adapter="place_recognition",
        how="give the file's path, and pooled_size= where it is not (2, 2); or one of GSV-Cities' trainer: ResNets, "
        "ResNeXts, EfficientNets and Swin V2, with Conv-AP, GeM or CosPlace's layers",
    ),
    PublishedModel(
        name="mixvpr",
        gives="embeddings",
        weights="linked from github.com/amaralibey/MixVPR: resnet50_MixVPR_….ckpt, by path",
        code_licence="none stated in its repository",
        weights_licence="none stated in its repository",
        pictures="320 x 320 px, squashed, bilinear; ImageNet mean and std",
        numbers=_VPR_NUMBERS + "; MSLS on 740 queries",
        adapter="place_recognition",
        how="give the file's path",
    ),
    PublishedModel(
        name="vg-benchmark",
        gives="embeddings",
        weights="the zoo of github.com/gmberton/deep-visual-geo-localization-benchmark, by path",
        code_licence="MIT",
        weights_licence="MIT (trained on Street View pictures)",
        pictures="480 x 640 px, squashed, bilinear (CCT and ViT: their squares); ImageNet mean and std",
        numbers="Berton et al., CVPR 2022, and its README",
        adapter="place_recognition",
        how="give the file's path; ResNets, VGG-16 and AlexNet with GeM, SPoC, MAC, R-MAC, NetVLAD, CRN and RRM, "
        "CCT-14 and ViT-B/16, too; aggregation= and l2= where it leaves these open. Not: PCA (its files hold none)",
    ),
    PublishedModel(
        name="gberton/MegaLoc",
        gives="embeddings",
        weights="Hub: gberton/MegaLoc (not pinned: give revision=)",
        code_licence="MIT",
        weights_licence="MIT, by its repository",
        pictures="322 x 322 px, squashed, bilinear; ImageNet mean and std; image_size_px= another multiple of 14",
        numbers=_VPR_NUMBERS,
        adapter="megaloc",
        files=("model.safetensors",),
        how="its vectors have 8448 numbers: a database of int8 takes 8.5 GB a million",
    ),
    PublishedModel(
        name="fferflo/statewide-geoloc-nomassgis",
        gives="embeddings",
        weights="Hub: fferflo/statewide-geoloc-nomassgis (not pinned: give revision=)",
        code_licence="MIT",
        weights_licence="none stated in its code's repository; see its page",
        pictures="photos fitted into 480 x 640 px, bilinear, black around; aerial views 384 px; ImageNet mean and std",
        numbers="Recall@1 < 50 m of 61.05 % in Massachusetts: its README",
        adapter="statewide",
        files=("weights/last.safetensors",),
        how="or by the path of its trainer's or database's file; aerial references have 4 views, 0.2 to 1.6 m a pixel",
    ),
    *(
        _plonk(data, suffix, how)
        for data in ("YFCC", "OSV_5M", "iNaturalist")
        for suffix, how in (
            ("", "a flow on the sphere; also log_density"),
            ("_flow", "a flow in space, its paper's baseline"),
            ("_diffusion", "denoising in space, its paper's baseline"),
        )
    ),
)


def find_published(name: str) -> PublishedModel | None:
    """The entry of a name, ignoring case."""
    return next((model for model in MODELS if model.name.lower() == name.lower()), None)
