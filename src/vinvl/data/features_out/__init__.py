"""Region features of a store → the formats that other programs read."""

from vinvl.data.features_out.mmf_npy import write_mmf_npy
from vinvl.data.features_out.oscar_tsv import write_oscar_tsv

__all__ = ["write_mmf_npy", "write_oscar_tsv"]
