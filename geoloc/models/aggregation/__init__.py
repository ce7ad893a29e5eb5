"""Aggregations: one vector from the feature maps of an image, or of several aerial views of a location.

maps.py       the feature map
statewide.py  Statewide's six, over several views
pooling.py    one number per channel, or one token: GeM, SPoC, MAC, R-MAC, RRM, the class token, SeqPool
transport.py  optimal transport (SALAD)
vlad.py       residuals to cluster centres: NetVLAD, CRN
mixing.py     reduced maps: Conv-AP, MixVPR
whitening.py  PCA as a linear layer
head.py       from a config to the module, and to unit vectors
scale.py      scale of embeddings in a loss
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
