"""How datasets, methods and metrics are called in front of people."""

DATASETS = {
    "mvtec_ad": "MVTec AD",
    "visa": "VisA",
    "mpdd": "MPDD",
    "btad": "BTAD",
    "ksdd": "KolektorSDD",
    "dagm": "DAGM 2007",
    "dtd_synthetic": "DTD-Synthetic",
    "aitex": "AITEX",
    "elpv": "ELPV",
    "sd_saliency_900": "SD-saliency-900",
    "rsdds_113": "RSDDs-113",
    "headct": "HeadCT",
    "brainmri": "BrainMRI",
    "br35h": "Br35H",
    "lag": "LAG",
    "cvc_colondb": "CVC-ColonDB",
    "cvc_clinicdb": "CVC-ClinicDB",
    "kvasir": "Kvasir-SEG",
    "endo": "EndoTect 2020",
    "isic": "ISIC 2016",
    "tn3k": "TN3K",
    "msd_lung": "MSD lung",
    "covid19": "COVID-19",
    "mvtec_ad2": "MVTec AD 2",
    "mvtec_loco": "MVTec LOCO",
    "real_iad": "Real-IAD",
    "goodsad": "GoodsAD",
    "synthetic_aux": "Synthetic (auxiliary)",
    "synthetic_target": "Synthetic (target)",
}

METHODS = {
    "tipsomaly": "TIPSomaly",
    "vip2clip": "ViP²-CLIP",
    "tps": "TPS",
    "faprompt": "FAPrompt",
    "anomalyclip": "AnomalyCLIP",
    "winclip": "WinCLIP",
    "aprilgan": "APRIL-GAN",
    "anovl": "AnoVL",
    "coop": "CoOp",
    "cocoop": "CoCoOp",
    "clip": "CLIP",
    "clip_ac": "CLIP-AC",
    "adaclip": "AdaCLIP",
    "aaclip": "AA-CLIP",
    "vcpclip": "VCP-CLIP",
    "musc": "MuSc",
}

METRICS = {
    "image_auroc": "Image AUROC",
    "image_ap": "Image AP",
    "image_f1max": "Image F1-max",
    "pixel_auroc": "Pixel AUROC",
    "pixel_ap": "Pixel AP",
    "pixel_f1max": "Pixel F1-max",
    "pixel_aupro": "AUPRO (exact)",
    "pixel_aupro_200step": "AUPRO (200 steps)",
}

METRIC_GROUPS = {"image": "Image level", "pixel": "Pixel level"}

COLUMNS = {
    "method": "Method",
    "variant": "Variant",
    "backbone": "Backbone",
    "auxiliary": "Trained on",
    "checkpoint": "Prompts",
    "seed": "Seed",
    "epoch": "Epoch",
    "class_name": "Class name",
    "prompt_family": "Prompt family",
    "image_size": "Image size",
    "sigma": "Sigma",
    "image_score": "Image score",
}


def dataset_name(key: str) -> str:
    """The dataset's usual spelling; the key itself when it is a folder of the user's."""
    return DATASETS.get(key, key)


def method_name(key: str) -> str:
    """The method's usual spelling."""
    return METHODS.get(key, key)


def category_name(key: str) -> str:
    """A category as words ("metal_nut" becomes "metal nut")."""
    return key.replace("_", " ")
