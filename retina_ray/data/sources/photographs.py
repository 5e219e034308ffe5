"""What the adapters of published data sets share about files: finding photographs and lesion masks by name.

Tables and files seldom agree on suffixes and their case, and neither list is complete: a label without a photograph
and a photograph without a label both become rows that say so.
"""

from collections.abc import Mapping
from pathlib import Path

from retina_ray.data.sources.base import SUFFIXES, SourceRow, photographs_in
from retina_ray.errors import DataError


class Photographs:
    """The photographs of a folder by name, whatever the case and the suffix.

    Args:
        folder: searched without its subfolders; may be missing, in which case it holds none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = photographs_in(folder) if folder.is_dir() else []
        self._by_name = {path.name.lower(): path for path in reversed(self._files)}
        self._by_stem = {path.stem.lower(): path for path in reversed(self._files)}
        self._taken: set[Path] = set()

    def __len__(self) -> int:
        return len(self._files)

    def take(self, name: str) -> Path | None:
        """Return the photograph of that name and count it as listed, or None where there is none.

        Args:
            name: of the file, with or without a suffix.
        """
        lower = name.lower()
        stem = lower.rpartition(".")[0] if lower.endswith(SUFFIXES) else lower
        found = self._by_name.get(lower) or self._by_stem.get(stem)
        if found is not None:
            self._taken.add(found)
        return found

    def not_taken(self) -> list[Path]:
        """Return the photographs that no label has asked for."""
        return [path for path in self._files if path not in self._taken]


def need_photographs(*folders: Path) -> Photographs:
    """Return the photographs of the first folder that has any.

    Raises:
        DataError: none has.
    """
    for folder in folders:
        photographs = Photographs(folder)
        if len(photographs):
            return photographs
    expected = " or ".join(map(str, folders))
    raise DataError("there are no photographs", expected, "unpack the images there, as the publisher's archive does")


def row_of(
    photographs: Photographs,
    name: str,
    *,
    source: str,
    image_id: str,
    grades: dict[str, int | None],
    refused: str | None = None,
    group_id: str | None = None,
    split: str | None = None,
    laterality: str | None = None,
    line: int | None = None,
    masks: dict[str, Path] | None = None,
) -> SourceRow:
    """Return the row of a photograph that a table names.

    Args:
        photographs: where it is to be found.
        name: of the photograph, with or without a suffix.
        source: name of the data set; put before both ids, since data sets number their photographs alike.
        image_id: unique within the data set.
        grades: of a row that can be used.
        refused: why it cannot, if so; a photograph that is missing is another reason.
        group_id: of the patient; default: a group of its own.
        split: as in `SourceRow`, like all that follow.
        laterality: left or right.
        line: of the table.
        masks: by lesion plane.
    """
    found = photographs.take(name)
    if found is None:
        refused = f"label without image: {photographs.folder.name} has no {name}"
    return SourceRow(
        image=found or photographs.folder / name,
        image_id=f"{source}/{image_id}",
        group_id=f"{source}/{group_id or image_id}",
        source=source,
        grades={} if refused else grades,
        split=split,
        laterality=laterality,
        line=line,
        masks=None if refused else masks,
        refused=refused,
    )


def unlabelled(photographs: Photographs, source: str, reason: str) -> list[SourceRow]:
    """Return a refused row for each photograph that no label has asked for.

    Args:
        photographs: after all labels were read.
        source: name of the data set.
        reason: why there is no label.
    """
    folder = photographs.folder.name
    refused = f"image without label: {reason}"
    return [
        row_of(photographs, path.name, source=source, image_id=f"{folder}/{path.name}", grades={}, refused=refused)
        for path in photographs.not_taken()
    ]


def lesion_rows(
    photographs: Photographs, masks: Mapping[str, tuple[Path, str]], *, source: str, prefix: str = "", split: str
) -> list[SourceRow]:
    """Return the rows of photographs whose lesions are drawn, without grades.

    Args:
        photographs: all of them.
        masks: plane -> folder of its files, and what their names end with after the photograph's stem.
        source: name of the data set.
        prefix: of the ids.
        split: of the rows.

    Returns:
        A row per photograph, refused where no lesion is drawn, and a refused one per drawing without a photograph.
    """
    names = {path.stem: path.name for path in photographs.not_taken()}
    drawn: dict[str, dict[str, Path]] = {stem: {} for stem in names}
    for plane, (folder, ending) in masks.items():
        for file in sorted(folder.glob(f"*{ending}")):
            drawn.setdefault(file.name.removesuffix(ending), {})[plane] = file
    return [
        row_of(
            photographs,
            names.get(stem, stem),
            source=source,
            image_id=prefix + names.get(stem, stem),
            grades={},
            refused=None if planes else f"image without label: no lesions of {names[stem]} are drawn",
            split=split,
            masks=planes,
        )
        for stem, planes in sorted(drawn.items())
    ]
