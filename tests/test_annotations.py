"""The copy of everything but the matrices, held against what anndata reads and writes."""

from __future__ import annotations

import importlib.util
import json
import shutil
import tempfile
import tracemalloc
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import share

from dask_convert.errors import AnnotationError, SourceError
from dask_convert.files import annotation_elements
from dask_convert.files.annotation_elements import CHUNK_ITEMS
from dask_convert.files.annotations import annotation_needs, copy_annotations

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

# The oracle, anndata 0.13, warns so about itself with pandas 3. The copy runs under "error".
pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option")

Format = Literal[2, 3]
OBS, VAR = 30, 20
SAMPLES = {
    "scanpy": "datasets/10x_pbmc68k_reduced.h5ad",
    "infercnvpy": "datasets/data/oligodendroglioma.h5ad",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Make a small file to change."""
    matrix = np.ones((OBS, VAR))
    adata = ad.AnnData(matrix, obsm={"pca": matrix}, uns={"nested": {"deep": {"text": "ä"}}})
    adata.raw = adata
    return written(adata, tmp_path / "source.h5ad")


@pytest.fixture(scope="module")
def rich_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(everything(), tmp_path_factory.mktemp("template") / "source.h5ad")


@pytest.fixture
def rich_path(rich_template: Path, tmp_path: Path) -> Path:
    """Make a file with every kind of element."""
    return Path(shutil.copy(rich_template, tmp_path))


@pytest.fixture(params=[2, 3], ids=["v2", "v3"])
def zarr_format(request: pytest.FixtureRequest) -> Format:
    return 2 if request.param == 2 else 3


def copied(
    path: Path, zarr_format: Format, converted: Collection[str] = (), slab_bytes: int = 2**25
) -> zarr.Group:
    """Copy, and let anndata write what the engine would."""
    target = zarr.open_group(path.with_suffix(".zarr"), mode="a", zarr_format=zarr_format)
    with h5py.File(path) as source, warnings.catch_warnings():
        warnings.simplefilter("error")
        copy_annotations(source, target, converted=converted, slab_bytes=slab_bytes)
        assert annotation_needs(source, converted).memory_bytes > 0
    oracle = quietly(ad.read_h5ad, path)
    for name in converted:
        matrix = oracle.raw.X if name.startswith("raw") else oracle.X
        matrix = oracle.layers[name.split("/")[1]] if name.startswith("layers") else matrix
        parent, _, key = name.rpartition("/")
        quietly(ad.io.write_elem, target[parent] if parent else target, key, matrix.tocsc())
    return zarr.open_group(path.with_suffix(".zarr"), mode="r")


def array_of(target: zarr.Group, name: str) -> zarr.Array[Any]:
    array = target[name]
    assert isinstance(array, zarr.Array)
    return array


def quietly(function: Callable[..., Any], *args: Any) -> Any:
    """Call anndata, whose own warnings about old formats are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args)


def assert_same(actual: Any, expected: Any, where: str = "") -> None:  # noqa: C901
    """Compare what anndata reads, down to the types that it gives."""
    if isinstance(expected, ad.AnnData | ad.Raw):
        names = ["X", "var", "varm"]
        if isinstance(expected, ad.AnnData):
            names += ["obs", "obsm", "obsp", "varp", "layers", "uns", "raw"]
        for name in names:
            assert_same(getattr(actual, name), getattr(expected, name), f"{where}/{name}")
    elif isinstance(expected, Mapping):
        assert set(actual) == set(expected), where
        for key in expected:
            assert_same(actual[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(actual, expected, check_exact=True, obj=where)
    elif isinstance(expected, pd.api.extensions.ExtensionArray):
        pd.testing.assert_series_equal(pd.Series(actual), pd.Series(expected), obj=where)
    elif sp.issparse(expected):
        assert actual.format in {expected.format, "csc"}, where
        assert_same(actual.toarray(), expected.toarray(), where)
    elif isinstance(expected, np.ndarray) and expected.dtype.kind not in "OTU":
        assert actual.dtype == expected.dtype.newbyteorder("="), where
        np.testing.assert_array_equal(actual, expected, err_msg=where)
    elif isinstance(expected, np.ndarray):
        np.testing.assert_array_equal(actual.astype(object), expected.astype(object), where)
    else:
        assert isinstance(actual, str) == isinstance(expected, str), where
        assert actual == expected or (actual != actual and expected != expected), where  # noqa: PLR0124


def assert_faithful(path: Path, target: zarr.Group) -> ad.AnnData:
    expected, actual = quietly(ad.read_h5ad, path), quietly(ad.read_zarr, target)
    assert_same(actual, expected)
    assert dict(target.attrs).items() >= {"encoding-type": "anndata"}.items()
    names = {"obs", "var", "obsm", "varm", "obsp", "varp", "layers", "uns"}
    assert names <= set(target) <= names | {"X", "raw"}
    assert ("raw" in target) == (expected.raw is not None)
    return actual


def frame(n: int, rng: np.random.Generator) -> pd.DataFrame:
    codes = rng.integers(-1, 3, n)
    return pd.DataFrame(
        {
            "category": pd.Categorical.from_codes(codes, ["b", "a", "ü"]),
            "ordered": pd.Categorical.from_codes(codes, [3, 1, 2], ordered=True),
            "float": rng.random(n, dtype="f4"),
            "bool": rng.random(n) < 0.5,
            "text": np.array([f"t{i}" * (i % 4) for i in range(n)], dtype=object),
            "integer": pd.array([None, *range(n - 1)], dtype="Int32"),
            "boolean": pd.array([None, *[True] * (n - 1)], dtype="boolean"),
            "zero": np.zeros(n),
            "slash and space ": np.arange(n, dtype="u1"),
        },
        index=pd.Index([f"id-{i}" for i in range(n)], name="barcode"),
    )


def everything() -> ad.AnnData:
    rng = np.random.default_rng(0)
    random = {"density": 0.2, "format": "csr", "rng": rng}
    counts = sp.random(OBS, VAR, density=0.3, format="csr", random_state=rng)
    del random
    records = np.zeros(4, dtype=[("gene", object), ("score", "f4"), ("fixed", "i8")])
    records["gene"] = ["a", "", "längst", "d"]
    adata = ad.AnnData(counts, frame(OBS, rng), frame(VAR, rng))
    adata.raw = ad.AnnData(counts, var=frame(VAR, rng), varm={"w": rng.random((VAR, 2))})
    adata.layers.update(counts=counts * 2, dense=counts.toarray(), csc=counts.tocsc())
    adata.obsm.update(pca=rng.random((OBS, 7)), frame=frame(OBS, rng), sparse=counts[:, :5])
    adata.varm["loadings"] = rng.random((VAR, 3), dtype="f4")
    adata.obsp["near"] = sp.random(OBS, OBS, density=0.1, format="csr", random_state=rng)
    adata.varp["dense"] = rng.random((VAR, VAR))
    adata.uns.update(
        {
            "records": records,
            "none": None,
            "empty": {},
            "nested": {"deep": {"int": 3, "float": np.nan, "bool": True, "text": "ä", "": 1}},
            "list": ["x", "y"],
            "complex": np.array([1j, np.inf]),
            "half": np.array([1.5, -0.0], dtype="f2"),
            "cube": rng.integers(0, 9, (3, 4, 5)),
            "no items": np.array([]),
            "no strings": np.array([], dtype=object),
            "bytes": np.array([b"ab", b""], dtype="S2"),
            "frame": frame(5, rng),
            "no columns": pd.DataFrame(index=["a", "b"]),
            "categorical": pd.Categorical(["u", None, "v"]),
            "one": np.array(["single"], dtype=object),
            "long": np.uint64(2**64 - 1),
            "big-endian": np.arange(3, dtype=">i4"),
            "adata": ad.AnnData(np.ones((2, 2))),
        }
    )
    del adata.uns["nested"]["deep"][""]
    return adata


def written(adata: ad.AnnData, path: Path) -> Path:
    quietly(adata.write_h5ad, path)
    return path


@pytest.mark.parametrize(
    ("converted", "slab_bytes"), [((), 1024), (("X", "layers/counts", "raw/X"), 2**25)]
)
def test_every_kind_of_element_arrives(
    rich_path: Path, zarr_format: Format, converted: tuple[str, ...], slab_bytes: int
) -> None:
    actual = assert_faithful(rich_path, copied(rich_path, zarr_format, converted, slab_bytes))
    assert actual.uns["none"] is None
    assert actual.obs["ordered"].cat.ordered
    assert actual.obs.index.name == "barcode"


def test_an_empty_file_becomes_an_empty_store(tmp_path: Path, zarr_format: Format) -> None:
    path = written(ad.AnnData(obs=pd.DataFrame(index=["a"])), tmp_path / "source.h5ad")
    with h5py.File(path, "a") as file:
        for name in ("obsm", "varm", "obsp", "varp", "layers", "uns"):
            del file[name]
    assert_faithful(path, copied(path, zarr_format))


def test_a_repeated_copy_leaves_the_matrices_alone(rich_path: Path) -> None:
    converted = ("X", "layers/counts", "raw/X")
    copied(rich_path, 3, converted)
    with h5py.File(rich_path) as source:
        copy_annotations(
            source, zarr.open_group(rich_path.with_suffix(".zarr")), converted=converted
        )
    assert_faithful(rich_path, zarr.open_group(rich_path.with_suffix(".zarr"), mode="r"))


@pytest.mark.parametrize("package", SAMPLES)
def test_real_files_of_older_versions_arrive(
    tmp_path: Path, zarr_format: Format, package: str
) -> None:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    path = tmp_path / "source.h5ad"
    path.write_bytes((Path(spec.origin).parent / SAMPLES[package]).read_bytes())
    assert_faithful(path, copied(path, zarr_format, ("raw/X",) if package == "scanpy" else ("X",)))


def test_the_target_needs_no_old_format_reader(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("scanpy")
    assert spec is not None
    assert spec.origin is not None
    target = zarr.open_group(tmp_path / "target.zarr", mode="w", zarr_format=2)
    with h5py.File(Path(spec.origin).parent / SAMPLES["scanpy"]) as source:
        copy_annotations(source, target, converted=())
    with warnings.catch_warnings():
        warnings.simplefilter("error", ad.OldFormatWarning)
        warnings.simplefilter("error", FutureWarning)
        adata = ad.read_zarr(target)
    assert list(adata.obs["phase"].cat.categories) == ["G1", "G2M", "S"]
    assert set(adata.obsp) == {"distances", "connectivities"}
    assert "phase_categories" not in adata.uns


def test_links_within_the_file_are_followed(path: Path, zarr_format: Format) -> None:
    with h5py.File(path, "a") as file:
        file["uns/soft"] = h5py.SoftLink("/obsm/pca")
        file["uns/hard"] = file["uns/nested"]
    actual = assert_faithful(path, copied(path, zarr_format))
    assert actual.uns["soft"].shape == (OBS, VAR)
    assert actual.uns["hard"]["deep"]["text"] == "ä"


def test_attributes_of_other_tools_are_kept(path: Path, zarr_format: Format) -> None:
    with h5py.File(path, "a") as file:
        file.attrs["origin"] = np.array([1, 2], dtype="u1")
        file["uns/nested"].attrs["note"] = np.bytes_(b"fixed")
        file["obsm/pca"].attrs["explained"] = np.float32(0.5)
    target = copied(path, zarr_format)
    assert target.attrs["origin"] == [1, 2]
    assert target["uns/nested"].attrs["note"] == "fixed"
    assert target["obsm/pca"].attrs["explained"] == 0.5


def _dangling(file: h5py.File) -> None:
    file["uns/bad"] = h5py.SoftLink("/nowhere")


def _cycle(file: h5py.File) -> None:
    file["uns/bad"] = file["uns"]


def _unknown_array(file: h5py.File) -> None:
    file["obsm/pca"].attrs["encoding-type"] = "quantum-array"


def _newer_version(file: h5py.File) -> None:
    file["obs"].attrs["encoding-version"] = "9.0.0"


def _extra_at_root(file: h5py.File) -> None:
    file["extra"] = 1


def _extra_in_raw(file: h5py.File) -> None:
    file["raw/obs2"] = 1


def _both_raws(file: h5py.File) -> None:
    file["raw.X"] = np.ones((OBS, VAR))


def _no_obs(file: h5py.File) -> None:
    del file["obs"]


def _backslash(file: h5py.File) -> None:
    file["uns/a\\b"] = 1


def _reserved(file: h5py.File) -> None:
    file["uns/zarr.json"] = 1


def _long_double(file: h5py.File) -> None:
    file["uns/bad"] = np.zeros(2, dtype=np.longdouble)


def _reference(file: h5py.File) -> None:
    file["uns/bad"] = file["obs"].ref


def _reference_attribute(file: h5py.File) -> None:
    file["uns"].attrs["bad"] = file["obs"].ref


def _lists(file: h5py.File) -> None:
    file["uns"].create_dataset("bad", shape=2, dtype=h5py.vlen_dtype("i4"))


def _text_as_array(file: h5py.File) -> None:
    file["uns/bad"] = ["a", "b"]
    file["uns/bad"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


def _not_utf8(file: h5py.File) -> None:
    file["uns/bad"] = np.array([b"\xff"], dtype="S1")


def _attribute_without_utf8(file: h5py.File) -> None:
    file["uns/nested"].attrs["bad"] = np.bytes_(b"\xff")


def _array_as_encoding(file: h5py.File) -> None:
    file["uns/nested"].attrs["encoding-type"] = np.array(["a", "b"], dtype="S1")


def _attribute_not_a_number(file: h5py.File) -> None:
    file["uns/nested"].attrs["bad"] = [1.0, np.nan]


def _three_bytes(file: h5py.File) -> None:
    kind = h5py.h5t.STD_I32LE.copy()
    kind.set_size(3)
    h5py.h5d.create(file["uns"].id, b"bad", kind, h5py.h5s.create_simple((2,)))


def _put(path: str, value: Any) -> Callable[[h5py.File], None]:
    def put(file: h5py.File) -> None:
        attrs = dict(file[path].attrs)
        del file[path]
        file[path] = value
        file[path].attrs.update(attrs)

    put.__name__ = f"_{path}_{np.shape(value)}"
    return put


def _sparse(path: str, indptr: Any, **attrs: Any) -> Callable[[h5py.File], None]:
    """Three entries in a CSR matrix of cells by cells, or what is said of them."""

    def sparse(file: h5py.File) -> None:
        group = file.create_group(path)
        encoding = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0"}
        group.attrs.update(encoding | {"shape": [OBS, OBS]} | attrs)
        group["data"], group["indices"], group["indptr"] = np.ones(3), [0, 1, 2], indptr

    sparse.__name__ = f"_sparse_{path}_{attrs}"
    return sparse


def _short_index(file: h5py.File) -> None:
    del file["obs/_index"]
    file["obs/_index"] = ["a"]
    encoding = {"encoding-type": "string-array", "encoding-version": "0.2.0"}
    file["obs/_index"].attrs.update(encoding)


def _short_mask(file: h5py.File) -> None:
    group = file.create_group("uns/bad")
    group.attrs.update({"encoding-type": "nullable-integer", "encoding-version": "0.1.0"})
    group["values"], group["mask"] = [1, 2, 3], [True, False]


def _categorical_without_codes(file: h5py.File) -> None:
    group = file.create_group("uns/bad")
    group.attrs.update({"encoding-type": "categorical", "encoding-version": "0.2.0"})
    group["categories"] = ["a"]


def _column_that_is_not_there(file: h5py.File) -> None:
    file["obs"].attrs["column-order"] = ["nothing"]


BAD = [
    (_dangling, "uns/bad: a link to nothing"),
    (_cycle, "uns/bad: a link leads back"),
    (_unknown_array, "obsm/pca: a data set with encoding-type 'quantum-array'"),
    (_newer_version, "obs: a group with encoding-type 'dataframe', version '9.0.0'"),
    (_extra_at_root, r"the root holds \['extra'\]"),
    (_extra_in_raw, "raw/obs2"),
    (_both_raws, "both 'raw' and the older"),
    (_no_obs, "no 'obs'"),
    (_backslash, "uns: the key"),
    (_reserved, "uns: the key"),
    (_long_double, "uns/bad: HDF5 type"),
    (_reference, "uns/bad: HDF5 type"),
    (_reference_attribute, "uns, attribute 'bad'"),
    (_lists, "uns/bad: HDF5 type"),
    (_text_as_array, "uns/bad: HDF5 type"),
    (_attribute_without_utf8, r"uns/nested, attribute 'bad': b'\\xff' is no UTF-8"),
    (_array_as_encoding, r"uns/nested: a group with encoding-type \"\['a', 'b'\]\""),
    (_attribute_not_a_number, "uns/nested, attribute 'bad': is nan, which JSON"),
    (_three_bytes, "uns/bad: cannot be read"),
    (_put("obsm/pca", np.ones((OBS - 1, 2))), rf"obsm/pca has {OBS - 1} along obs, but obs has"),
    (_put("X", np.ones((OBS, VAR + 1))), rf"X has {VAR + 1} along var, but var has {VAR} rows"),
    (_put("raw/X", np.ones((OBS + 1, VAR))), rf"raw/X has {OBS + 1} along obs"),
    (_short_index, rf"X has {OBS} along obs, but obs has 1 rows"),
    (_column_that_is_not_there, "obs: has no 'nothing', which it needs"),
    (_short_mask, "uns/bad/mask has 2 elements, but uns/bad/values has 3"),
    (_categorical_without_codes, "uns/bad: has no 'codes', which it needs"),
    (_sparse("obsp/bad", [0, 3]), "obsp/bad/indptr has 2 elements, but a csr matrix of shape"),
    (_sparse("obsp/bad", [0] * OBS, shape=[OBS - 1, OBS]), "obsp/bad has .* along obs, but obs"),
    (_sparse("uns/bad", [0] * OBS, shape=["a"]), r"uns/bad: attribute 'shape' is \['a'\]"),
]


@pytest.mark.parametrize(("damage", "message"), BAD, ids=lambda item: getattr(item, "__name__", ""))
def test_what_cannot_be_copied_is_refused_before_anything_is_written(
    path: Path, tmp_path: Path, damage: Callable[[h5py.File], None], message: str
) -> None:
    target = zarr.open_group(tmp_path / "target.zarr", mode="w", zarr_format=3)
    with h5py.File(path, "a") as file:
        damage(file)
        with pytest.raises(SourceError, match=message):
            copy_annotations(file, target, converted=())
    assert not list(target)


FULL = [0, 3] + [3] * (OBS - 1)
WRONG = [
    (_sparse("obsp/bad", [1, *FULL[1:]]), "obsp/bad/indptr begins with 1, not with 0"),
    (_sparse("obsp/bad", [*FULL[:-1], 2]), "obsp/bad/indptr descends somewhere"),
    (_sparse("obsp/bad", [0] + [4] * OBS), "obsp/bad/indptr ends with 4, but there are 3 entries"),
    (_sparse("varp/bad", [0, *[3] * VAR], shape=[VAR, 2]), "varp/bad has 2 along var"),
    (_sparse("uns/bad", [0, 3], shape=[1, 2]), "uns/bad/indices holds 2, and 0 to 1 are all"),
    (_put("obs/category/codes", np.full(OBS, 3, "i1")), "obs/category/codes holds 3, and -1 to 2"),
    (_put("obs/category/codes", np.full(OBS, -2, "i1")), "obs/category/codes holds -2"),
]


@pytest.mark.parametrize("slab_bytes", [64, 2**25])
@pytest.mark.parametrize(
    ("damage", "message"), WRONG, ids=lambda item: getattr(item, "__name__", "")
)
def test_values_that_point_nowhere_are_refused(
    path: Path,
    tmp_path: Path,
    damage: Callable[[h5py.File], None],
    message: str,
    slab_bytes: int,
) -> None:
    """Of copied matrices and categoricals, where they are read; in whatever slabs."""
    adata = quietly(ad.read_h5ad, path)
    adata.obs["category"] = pd.Categorical.from_codes(np.arange(OBS) % 3, ["a", "b", "c"])
    written(adata, path)
    target = zarr.open_group(tmp_path / "target.zarr", mode="w", zarr_format=3)
    with h5py.File(path, "a") as file:
        damage(file)
        with pytest.raises(AnnotationError, match=message):
            copy_annotations(file, target, converted=(), slab_bytes=slab_bytes)


def _nullable_categories(file: h5py.File) -> None:
    with ad.settings.override(allow_write_nullable_strings=True):
        ad.io.write_elem(file["obs/category"], "categories", pd.array(["a", "b", "c"], "string"))


def _spare_entries(file: h5py.File) -> None:
    _sparse("obsp/spare", [0] + [2] * OBS)(file)


def _shape_of_floats(file: h5py.File) -> None:
    _sparse("obsp/floats", FULL, shape=np.array([OBS, OBS], "f8"))(file)


def _null_layers(file: h5py.File) -> None:
    del file["layers"]
    ad.io.write_elem(file, "layers", None)


@pytest.mark.parametrize(
    "change", [_nullable_categories, _spare_entries, _shape_of_floats, _null_layers]
)
def test_what_is_odd_but_can_be_read_is_copied(
    path: Path, zarr_format: Format, change: Callable[[h5py.File], None]
) -> None:
    """The same comes out of both by anndata."""
    adata = quietly(ad.read_h5ad, path)
    adata.obs["category"] = pd.Categorical.from_codes(np.arange(OBS) % 3, ["a", "b", "c"])
    written(adata, path)
    with h5py.File(path, "a") as file:
        quietly(change, file)
    assert_faithful(path, copied(path, zarr_format))


def test_a_single_category_may_be_a_scalar(path: Path, zarr_format: Format) -> None:
    """As files before anndata 0.7 have them in `uns`."""
    rows = np.zeros(OBS, [("index", "S4"), ("louvain", "i1")])
    rows["index"] = [f"c{i}".encode() for i in range(OBS)]
    with h5py.File(path, "a") as file:
        del file["obs"]
        file["obs"] = rows
        file["uns/louvain_categories"] = np.bytes_("0")
    actual = quietly(ad.read_zarr, copied(path, zarr_format))
    assert list(actual.obs["louvain"]) == ["0"] * OBS


def test_a_large_chunk_is_inflated_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Larger than HDF5's cache; writers in R put whole arrays into one."""
    monkeypatch.setattr(annotation_elements, "_CACHE_BYTES", 2**10)
    monkeypatch.setattr(annotation_elements, "CHUNK_ITEMS", {**CHUNK_ITEMS, "numbers": 100})
    values = np.arange(1000.0)
    reads: list[slice] = []
    original = annotation_elements._values

    def counted(node: Any, selection: Any) -> Any:
        if node.path == "uns/large":
            reads.append(selection[0])
        return original(node, selection)

    monkeypatch.setattr(annotation_elements, "_values", counted)
    with h5py.File(path, "a") as file:
        file.create_dataset("uns/large", data=values, chunks=(600,), compression=1)
    target = copied(path, 3)
    np.testing.assert_array_equal(array_of(target, "uns/large")[:], values)
    assert reads == [slice(0, 600), slice(600, 1000)]


def test_paths_that_would_be_too_long_are_refused(path: Path, tmp_path: Path) -> None:
    """Of a deep element in a deep directory; before anything is written."""
    name = "n" * 200
    with h5py.File(path, "a") as file:
        file[f"uns/{name}/{name}"] = 1
    directory = tmp_path.joinpath(*[name] * ((3900 - len(str(tmp_path))) // 201))
    target = zarr.open_group(directory, mode="w", zarr_format=3)
    with h5py.File(path) as file, pytest.raises(AnnotationError, match="would be too long"):
        copy_annotations(file, target, converted=())
    assert not list(target)


def test_text_that_is_not_utf8_is_refused(path: Path, tmp_path: Path) -> None:
    target = zarr.open_group(tmp_path / "target.zarr", mode="w", zarr_format=3)
    with h5py.File(path, "a") as file:
        _not_utf8(file)
        with pytest.raises(AnnotationError, match="uns/bad: cannot be copied"):
            copy_annotations(file, target, converted=())


def test_a_key_with_a_slash_arrives_as_nested_mappings(path: Path, zarr_format: Format) -> None:
    with h5py.File(path, "a") as file:
        file["uns/a/b"] = "c"
    assert assert_faithful(path, copied(path, zarr_format)).uns["a"] == {"b": "c"}


def test_unspecified_data_sets_become_what_anndata_reads(path: Path, zarr_format: Format) -> None:
    with h5py.File(path, "a") as file:
        plain = file["uns"].create_group("plain")
        plain["one"] = np.array([b"single"])
        plain["several"] = np.array([b"a", b"bc"])
        plain["text"] = "scalar"
        plain["utf8"] = np.array(["one"], dtype=h5py.string_dtype())
        plain["number"] = 3
        plain["numbers"] = np.arange(3)
        plain["records"] = np.array([(b"x", 1)], dtype=[("a", "S3"), ("b", "i4")])
        sparse = file["obsp"].create_group("old")
        sparse.attrs.update({"h5sparse_format": "csc", "h5sparse_shape": (OBS, OBS)})
        matrix = sp.eye(OBS, format="csc")
        for name in ("data", "indices", "indptr"):
            sparse[name] = getattr(matrix, name)
    target = copied(path, zarr_format)
    plain = assert_faithful(path, target).uns["plain"]
    assert plain["one"] == "single"
    assert target["obsp/old"].attrs["encoding-type"] == "csc_matrix"


def test_awkward_arrays_arrive(path: Path, zarr_format: Format) -> None:
    content = {"class": "NumpyArray", "primitive": "float64", "form_key": "node1"}
    form = {"class": "ListOffsetArray", "offsets": "i64", "content": content, "form_key": "node0"}
    with h5py.File(path, "a") as file:
        group = file["obsm"].create_group("ragged")
        group.attrs.update({"encoding-type": "awkward-array", "encoding-version": "0.1.0"})
        group.attrs.update({"length": np.int64(OBS), "form": json.dumps(form)})
        ad.io.write_elem(group, "node0-offsets", np.arange(OBS + 1))
        ad.io.write_elem(group, "node1-data", np.arange(OBS, dtype=float))
    target = zarr.open_group(path.with_suffix(".zarr"), mode="w", zarr_format=zarr_format)
    with h5py.File(path) as source:
        copy_annotations(source, target, converted=())
    ragged = target["obsm/ragged"]
    assert ragged.attrs["length"] == OBS
    assert json.loads(str(ragged.attrs["form"])) == form
    offsets = array_of(target, "obsm/ragged/node0-offsets")[...]
    np.testing.assert_array_equal(offsets, np.arange(OBS + 1))


def test_nullable_strings_arrive(path: Path, zarr_format: Format) -> None:
    with h5py.File(path, "a") as file, ad.settings.override(allow_write_nullable_strings=True):
        ad.io.write_elem(file["uns"], "nullable", pd.array(["a", None], dtype="string"))
    actual = assert_faithful(path, copied(path, zarr_format))
    assert actual.uns["nullable"].isna().tolist() == [False, True]


def test_an_index_that_pandas_3_made_nullable_stays_readable_for_all(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["obs/_index"]
        index = file["obs"].create_group("_index")
        index.attrs.update({"encoding-type": "nullable-string-array", "na-value": "NaN"})
        index.attrs["encoding-version"] = "0.1.0"
        ad.io.write_elem(index, "values", np.array([f"id {i}" for i in range(OBS)], dtype=object))
        ad.io.write_elem(index, "mask", np.zeros(OBS, dtype=bool))
    target = zarr.open_group(path.with_suffix(".zarr"), mode="w", zarr_format=3)
    with h5py.File(path) as source:
        copy_annotations(source, target, converted=())
    assert target["obs/_index"].attrs["encoding-type"] == "string-array"
    assert quietly(ad.read_zarr, target).obs_names[-1] == f"id {OBS - 1}"


def test_every_chunk_is_written_and_bounded(tmp_path: Path) -> None:
    adata = ad.AnnData(obs=pd.DataFrame(index=[str(i) for i in range(300_000)]))
    adata.obsm["zero"] = np.zeros((300_000, 5), dtype="f4")
    adata.obs["zero"] = np.zeros(300_000)
    path = written(adata, tmp_path / "source.h5ad")
    target = copied(path, 3, slab_bytes=2**25)
    assert array_of(target, "obsm/zero").chunks[1:] == (5,)
    assert array_of(target, "obs/zero").chunks == (2**18,)
    assert array_of(target, "obs/_index").chunks == (2**16,)
    for name in ("obsm/zero", "obs/zero", "obs/_index"):
        assert array_of(target, name).nchunks_initialized == array_of(target, name).nchunks
        assert "crc32c" in str(array_of(target, name).metadata.to_dict())


def test_memory_stays_within_the_projection(tmp_path: Path) -> None:
    path, slab_bytes = tmp_path / "source.h5ad", 2**22
    adata = ad.AnnData(obs=pd.DataFrame(index=[f"AAACCTGAG-{i}" for i in range(200_000)]))
    adata.obsm["dense"] = np.random.default_rng(0).random((200_000, 20))
    written(adata, path)
    target = zarr.open_group(tmp_path / "target.zarr", mode="w", zarr_format=3)
    with h5py.File(path) as source:
        projected = annotation_needs(source, (), slab_bytes=slab_bytes).memory_bytes
        tracemalloc.start()
        copy_annotations(source, target, converted=(), slab_bytes=slab_bytes)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < min(projected, 3 * slab_bytes)


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    st.lists(st.floats(width=32), max_size=3).map(np.array),
    st.lists(st.text("aä ", max_size=3), min_size=1, max_size=3).map(
        lambda items: np.array(items, dtype=object)
    ),
)
keys = st.text("abcXYZ_-é. ", min_size=1, max_size=5).filter(lambda key: key.strip(".") != "")
mappings = st.dictionaries(
    keys,
    st.recursive(scalars, lambda inner: st.dictionaries(keys, inner, max_size=3), max_leaves=5),
)


@given(uns=mappings, zarr_format=st.sampled_from([2, 3]))
@settings(max_examples=share(6))
def test_any_nested_mapping_arrives(uns: dict[str, Any], zarr_format: Format) -> None:
    with tempfile.TemporaryDirectory() as directory:
        adata = ad.AnnData(obs=pd.DataFrame(index=["a"]), uns=uns)
        path = written(adata, Path(directory) / "source.h5ad")
        assert_faithful(path, copied(path, zarr_format))
