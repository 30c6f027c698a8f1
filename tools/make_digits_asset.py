"""Write `sde_score/assets/digits.npz` from scikit-learn's copy of the UCI optical digits: run once, by maintainers.

    python tools/make_digits_asset.py

Needs scikit-learn (the `test` extra). The file is the same, byte for byte, each time.
"""

import io
import zipfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

TARGET = Path(__file__).resolve().parents[1] / "sde_score" / "assets" / "digits.npz"


def npy_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def main() -> None:
    digits = load_digits()
    images = digits.images.astype(np.uint8)
    assert images.shape == (1797, 8, 8) and (images == digits.images).all() and images.max() == 16
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    # np.savez would stamp the time of day into the archive.
    with zipfile.ZipFile(TARGET, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in (("images", images), ("labels", digits.target.astype(np.uint8))):
            archive.writestr(
                zipfile.ZipInfo(f"{name}.npy", (1998, 7, 1, 0, 0, 0)), npy_bytes(array), zipfile.ZIP_DEFLATED
            )
    print(f"{TARGET.name}: {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
