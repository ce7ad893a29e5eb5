"""One vector from the feature maps of a picture, or of several aerial views of the same place.

maps.py       what an aggregation reads
statewide.py  the six of Statewide, for views of a place together
pooling.py    one number a channel, or one token: GeM, SPoC, MAC, R-MAC, RRM, the class token, SeqPool
transport.py  positions dealt out to clusters: SALAD's optimal transport
vlad.py       what differs from cluster centres: NetVLAD, CRN
mixing.py     maps made small and laid out: Conv-AP, MixVPR
whitening.py  PCA as a linear layer
head.py       from a config to the module, and to unit vectors
scale.py      how long embeddings are in a loss

Knows nothing about backbones and what maps show.
"""

from geoloc.models.aggregation.head import AggregatingHead, build_aggregation
from geoloc.models.aggregation.maps import FeatureMap
from geoloc.models.aggregation.mixing import ConvAP, MixVPR
from geoloc.models.aggregation.pooling import (
    ClassToken,
    FirstPosition,
    GeneralizedMean,
    MaxPooling,
    RegionalMaxPooling,
    ResidualRetrieval,
    SequencePooling,
    SumPooling,
)
from geoloc.models.aggregation.scale import EmbeddingScale
from geoloc.models.aggregation.transport import OptimalTransport
from geoloc.models.aggregation.vlad import CRN, NetVLAD, local_descriptors
from geoloc.models.aggregation.whitening import MAX_DESCRIPTORS, fit_pca

__all__ = [
    "CRN",
    "MAX_DESCRIPTORS",
    "AggregatingHead",
    "ClassToken",
    "ConvAP",
    "EmbeddingScale",
    "FeatureMap",
    "FirstPosition",
    "GeneralizedMean",
    "MaxPooling",
    "MixVPR",
    "NetVLAD",
    "OptimalTransport",
    "RegionalMaxPooling",
    "ResidualRetrieval",
    "SequencePooling",
    "SumPooling",
    "build_aggregation",
    "fit_pca",
    "local_descriptors",
]
