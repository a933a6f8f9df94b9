"""Networks built from our layers, and their dense twins for comparison."""

from dwsep.networks.deeplab_v3_plus import DeepLabV3Plus
from dwsep.networks.mobilenet_v1 import MobileNetV1
from dwsep.networks.mobilenet_v2 import MobileNetV2
from dwsep.networks.mobilenet_v3 import MobileNetV3
from dwsep.networks.registry import create, load_model, names, option_names, task_of
from dwsep.networks.series_separable import SeriesSeparable
from dwsep.networks.text_light import TextLight
from dwsep.networks.text_separable import TextSeparable
from dwsep.networks.xception import Xception

__all__ = [
    "DeepLabV3Plus",
    "MobileNetV1",
    "MobileNetV2",
    "MobileNetV3",
    "SeriesSeparable",
    "TextLight",
    "TextSeparable",
    "Xception",
    "create",
    "load_model",
    "names",
    "option_names",
    "task_of",
]
