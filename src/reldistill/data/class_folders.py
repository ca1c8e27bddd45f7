"""Class folders: which folders of a Store are classes, which are splits, and what is in neither."""

from __future__ import annotations

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from reldistill.core.checks import UserError, check_printable
from reldistill.data.files import FileReader, Store
from reldistill.data.left_out import is_image, unused
from reldistill.data.samples import Samples, Splits, hold_out, split_by_name

ROLES = {  # what a split's folder may be called, in order of preference
    "train": ("train", "training", "trn", "trainval"),
    "val": ("val", "valid", "validation", "validate", "validating", "dev", "development", "eval", "evaluation"),
    "test": ("test", "testing", "tst", "holdout"),
}
PLAIN = ("train", "val", "valid", "validation", "test")
"""Names that are a split's even where no other split lies beside it."""
FILLERS = frozenset(
    {"set", "sets", "data", "dataset", "datasets", "image", "images", "img", "imgs", "pics", "pictures", "photos"}
    | {"folder", "dir", "files", "samples", "split", "subset", "part", "partition", "seg"}
)
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_A-Za-z]+")
LAYOUT = "expected one folder of images per class"


@dataclass(frozen=True)
class SplitName:
    """What a split folder's name consists of.

    Args:
        role: `train`, `val` or `test`.
        word: the one of ROLES in it.
        rest: its other words, except FILLERS, such as the data set's name.
        plain: whether the name is one of PLAIN and nothing else.
    """

    role: str
    word: str
    rest: tuple[str, ...]
    plain: bool


def split_name(name: str) -> SplitName | None:
    """The parts of a split folder's name; None for any other name.

    >>> split_name("training_set").role, split_name("seg_test").role, split_name("ValidationImages").role
    ('train', 'test', 'val')
    >>> split_name("asl_alphabet_train").rest
    ('asl', 'alphabet')
    >>> split_name("terrain")
    """
    words = [_without_filler(word.lower()) for word in WORD.findall(name)]
    found = [(role, word) for word in words for role, known in ROLES.items() if word in known]
    if len(found) != 1:
        return None
    (role, word), rest = found[0], tuple(w for w in words if w != found[0][1] and w not in FILLERS)
    return SplitName(role, word, rest, name.lower() in PLAIN)


def _without_filler(word: str) -> str:
    """`train` of `trainset`."""
    known = [name for names in ROLES.values() for name in names]
    return next((name for name in known if word.removeprefix(name) in FILLERS and word.startswith(name)), word)


class _Tree:
    """The folders of a Store, and how many images each holds itself."""

    def __init__(self, store: Store) -> None:
        self.inside: defaultdict[str, list[str]] = defaultdict(list)  # folder → names of the folders in it
        for folder in sorted(store.folders):
            parent, name = posixpath.split(folder)
            self.inside[parent].append(name)
        images = [path for path in store.files if is_image(path)]
        self.images = Counter(posixpath.dirname(path) for path in images)
        self.all_images = Counter(at for path in images for at in _folders_above(path))

    def look_through(self, folder: str, *, to_splits: bool = False) -> str:
        """Pass by single folders that only hold folders; `to_splits`: not by one that is named as a held-out split."""
        while len(names := self.inside[folder]) == 1 and not self.images[folder]:
            below, split = posixpath.join(folder, names[0]), split_name(names[0])
            if not self.inside[below] or (to_splits and split and split.role != "train"):
                break
            folder = below
        return folder

    def class_root(self, folder: str) -> str | None:
        """The folder whose folders are the classes of a split; None where it only holds images."""
        root = self.look_through(folder)
        names = self.inside[root]
        # a split that holds its own name again, as archives of archives do, holds images there
        again = len(names) == 1 and (split_name(names[0]) is not None or names[0] == posixpath.basename(root))
        return None if not names or again else root


def _folders_above(path: str) -> Iterable[str]:
    while path:
        path = posixpath.dirname(path)
        yield path


@dataclass(frozen=True)
class _Roots:
    """The folders that hold the class folders of each split; None where there is no such split."""

    train: str
    val: str | None = None
    test: str | None = None


def _roots(tree: _Tree, top: str, where: str) -> _Roots:
    """The splits inside `top`, or `top` itself where there are none.

    Where nothing else could validate, the test folder does, and there is none to test on.
    """
    named = {name: split for name in tree.inside[top] if (split := split_name(name))}
    found = {name: tree.class_root(posixpath.join(top, name)) for name in named}
    roots = {name: root for name, root in found.items() if root is not None}
    splits = _chosen({name: named[name] for name in roots}, top, where)
    held = splits.get("val") or splits.get("test")
    flat = {named[name].role: name for name in named if name not in roots and not named[name].rest}
    if "train" not in splits:
        if held and "train" in flat:
            raise UserError(f"{where}: {flat['train']}/ has no class folders, as {held}/ beside it has; {LAYOUT}")
        if held and named[held].plain:
            raise UserError(f"{where}: has {held}/ but no train/ beside it; name the training folder train")
        for group in _groups(named).values():
            if "train" in group and len(group) > 1:
                listed = " and ".join(f"{name}/" for names in group.values() for name in names)
                raise UserError(f"{where}: {listed} are splits without class folders; {LAYOUT} inside each of them")
        return _Roots(top)
    train = splits["train"]
    if not held and not named[train].plain:
        others = [name for name in tree.inside[top] if name != train and tree.all_images[posixpath.join(top, name)]]
        if others:
            raise UserError(
                f"{where}: {train}/ could be the training images or, like {others[0]}/, a class; name it train where "
                f"it holds the classes, else put its images into it"
            )
    val, test = splits.get("val"), splits.get("test")
    if val is None:
        val, test = test, None
    return _Roots(roots[train], val and roots[val], test and roots[test])


def _groups(found: dict[str, SplitName]) -> dict[tuple[str, ...], dict[str, list[str]]]:
    """What names of splits have beside the split's → role → names."""
    groups: defaultdict[tuple[str, ...], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, split in sorted(found.items(), key=lambda pair: list(ROLES).index(pair[1].role)):
        groups[split.rest][split.role].append(name)
    return groups


def _chosen(found: dict[str, SplitName], top: str, where: str) -> dict[str, str]:
    """Role → folder: names of a split alone, else those that share one other part, such as the data set's name."""
    groups = _groups(found)
    alone = groups.pop((), None)
    partners = [group for group in groups.values() if "train" in group and len(group) > 1]
    group = alone or (partners[0] if len(partners) == 1 else {})
    chosen = {}
    for role, names in group.items():
        ranked = sorted((ROLES[role].index(found[n].word), n.lower() != found[n].word, n) for n in names)
        if len(ranked) > 1 and ranked[0][:2] == ranked[1][:2]:
            both = f"{ranked[0][2]}/ and {ranked[1][2]}/"
            inside = f" in {top}/" if top else ""
            raise UserError(f"{where}: {both}{inside} could both be its {role} images; keep one of them there")
        chosen[role] = ranked[0][2]
    return chosen


def read_splits(store: Store, *, where: str, val_fraction: float, hold_out_test: bool = False) -> Splits:
    """Find the class folders of a Store, and its training, validation and (if asked for) test images."""
    tree = _Tree(store)
    top = tree.look_through("", to_splits=True)
    roots = _roots(tree, top, where)
    train_images = _images_by_class(store, tree, roots.train)
    classes = tuple(train_images)
    at = where if roots.train == top else f"{where}: {roots.train}/"
    _check_classes(store, train_images, at)
    _check_nesting(tree, roots.train, at)
    train = _labelled(FileReader(store), train_images, classes)
    prefix = f"{roots.train}/"
    if roots.val is None:
        train, val = split_by_name(train, val_fraction, classes=classes, where=where, prefix=prefix)
    else:
        val = _same_classes(store, tree, roots.val, classes, train_folder=roots.train, where=where)
    splits = Splits(train, val, classes, where)
    if hold_out_test and roots.test is not None:
        test = _same_classes(store, tree, roots.test, classes, train_folder=roots.train, where=where)
        splits = replace(splits, test=test)
    elif hold_out_test:
        splits = hold_out(splits, val_fraction, prefix=prefix)
    used = [root for root in (roots.train, roots.val, roots.test if hold_out_test else None) if root is not None]
    keys = [key for samples in splits.parts.values() for key in samples.keys]
    return replace(splits, left_out=unused(store, keys, used))


def _images_by_class(store: Store, tree: _Tree, folder: str) -> dict[str, list[str]]:
    """Class folder directly inside `folder` → paths of the images below it; both sorted."""
    prefix = f"{folder}/" if folder else ""
    classes: dict[str, list[str]] = {name: [] for name in tree.inside[folder]}
    for path in sorted(store.files):
        if path.startswith(prefix) and is_image(path):
            name, slash, _ = path[len(prefix) :].partition("/")
            if slash:
                classes[name].append(path)
    return classes


def _labelled(reader: FileReader, images: dict[str, list[str]], classes: tuple[str, ...]) -> Samples:
    pairs = [(path, label) for label, name in enumerate(classes) for path in images.get(name, ())]
    return Samples(reader, [path for path, _ in pairs], [label for _, label in pairs])


def _same_classes(
    store: Store, tree: _Tree, folder: str, classes: tuple[str, ...], *, train_folder: str, where: str
) -> Samples:
    """The images of a part that is not for training; UserError unless it holds the training folder's classes."""
    images = _images_by_class(store, tree, folder)
    for name in sorted(set(images) ^ set(classes)):
        there, lacking = (train_folder, folder) if name in classes else (folder, train_folder)
        raise UserError(
            f"{where}: class {name!r} is in {there}/ but not in {lacking}/; both must hold the same classes"
        )
    return _labelled(FileReader(store), images, classes)


def _check_classes(store: Store, images: dict[str, list[str]], where: str) -> None:
    if not any(images.values()):
        others = sorted(path for path in store.files if not is_image(path))
        loose = len(store.files) - len(others)
        found = f"{loose} images outside class folders" if loose else "no images"
        also = f" ({len(others)} other files, e.g. {others[0]})" if others else ""
        raise UserError(f"{where}: no class folders with images: found {found}{also}; {LAYOUT}")
    check_printable(images, where)
    if len(images) == 1:
        raise UserError(f"{where}: only one class, {next(iter(images))!r}; {LAYOUT}, at least two")


def _check_nesting(tree: _Tree, root: str, where: str) -> None:
    """UserError where the folders of `root` are groups of classes, or of splits, rather than classes.

    A class may hold folders. But where none of the classes holds an image itself, the folders inside them are the
    classes, unless they all have one name (`cat/images/`, `dog/images/`).
    """
    classes = [name for name in tree.inside[root] if tree.all_images[posixpath.join(root, name)]]
    inside = {name: tree.inside[posixpath.join(root, name)] for name in classes}
    own = {name: tree.images[posixpath.join(root, name)] for name in classes}
    below = sorted({folder for folders in inside.values() for folder in folders})
    if not any(own.values()) and (len(below) > 1 or any(map(split_name, below))):
        raise UserError(
            f"{where}: its {len(classes)} folders ({_some(classes)}) hold no images themselves, only folders "
            f"({_some(below)}); {LAYOUT}: give the folder whose folders are the classes, or call splits train and val "
            f"and put the class folders into them"
        )
    for name, folders in inside.items():
        if folders and not own[name] and set(folders) <= set(classes):
            raise UserError(
                f"{where}: {name}/ holds no images itself but folders called like the classes beside it "
                f"({_some(folders)}); move it elsewhere, or call splits train and val"
            )
        if {"train"} < {split.role for folder in folders if (split := split_name(folder))}:
            raise UserError(
                f"{where}: class folder {name}/ holds splits ({_some(folders)}); put the class folders into the splits"
            )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
