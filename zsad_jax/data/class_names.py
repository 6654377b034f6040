"""How a category is called in prompts."""

# The names that some published code uses in fixed prompts (Bayes-PFL for VisA and BTAD, AnomalyCLIP for
# the others). TIPSomaly and the tables here use the plain rule; class names change scores visibly.
DESCRIPTIVE = {
    "visa": {
        "chewinggum": "chewing gum",
        "macaroni1": "macaroni",
        "macaroni2": "macaroni",
        "pcb1": "printed circuit board",
        "pcb2": "printed circuit board",
        "pcb3": "printed circuit board",
        "pcb4": "printed circuit board",
    },
    "btad": {"01": "metal1", "02": "wood", "03": "metal2"},
    "ksdd": {"SDD": "electrical commutators", "ksdd": "electrical commutators"},
    "headct": {"headct": "brain"},
    "brainmri": {"brain_mri": "brain", "brainmri": "brain"},
    "br35h": {"br35h": "brain"},
    "cvc_colondb": {"ColonDB": "colon"},
    "cvc_clinicdb": {"ClinicDB": "colon"},
    "endo": {"endo": "colon"},
    "isic": {"isic": "skin"},
    "tn3k": {"tn3k": "thyroid"},
}


def prompt_name(category: str, *, dataset: str = "", descriptive: bool = False) -> str:
    """Says how a category is called in prompts.

    Args:
      category: the dataset's own spelling ("metal_nut").
      dataset: its key ("mvtec_ad"); needed only for descriptive names.
      descriptive: whether to use a describing name where one is known ("pcb1" becomes "printed circuit
        board") instead of the plain rule of the published TIPSomaly code.

    Returns:
      The category with "_" and "-" turned into spaces, or its describing name.
    """
    if descriptive and category in DESCRIPTIVE.get(dataset, {}):
        return DESCRIPTIVE[dataset][category]
    return category.replace("_", " ").replace("-", " ").strip()
