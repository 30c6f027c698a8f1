"""Reading and writing the files of the original implementations, of diffusers and of EDM."""

from sde_score.models.official.checkpoint import (
    DamagedFile,
    OfficialCheckpointError,
    OfficialFile,
    OfficialModel,
    UnsafeFile,
    WrongArchitecture,
    load_official,
    read_official,
    save_official,
)
from sde_score.models.official.diffusers_layout import load_diffusers, to_diffusers
from sde_score.models.official.edm_layout import edm_parameterization, load_edm, to_edm
from sde_score.models.official.names import to_original_state_dict

__all__ = [
    "DamagedFile",
    "OfficialCheckpointError",
    "OfficialFile",
    "OfficialModel",
    "UnsafeFile",
    "WrongArchitecture",
    "edm_parameterization",
    "load_diffusers",
    "load_edm",
    "load_official",
    "read_official",
    "save_official",
    "to_diffusers",
    "to_edm",
    "to_original_state_dict",
]
