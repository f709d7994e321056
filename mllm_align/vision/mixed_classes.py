"""The classes that models with a mixer have in place of the stock ones."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

from mllm_align.families import family_of
from mllm_align.families.base import EXTRA_PIXELS
from mllm_align.vision.inserting import read
from mllm_align.vision.mixed_vision import mixed_of


@functools.cache
def encoding_class(stock: type) -> type:
    """The class of a model without its language head whose images are mixed; by name the stock one."""

    def get_image_features(self: Any, *args: Any, **kwargs: Any) -> Any:
        mixed = mixed_of(self)
        own = kwargs.pop(EXTRA_PIXELS, None)
        if mixed is None:
            return stock.get_image_features(self, *args, **kwargs)  # type: ignore[attr-defined]
        before, mixed.own_pixels = mixed.own_pixels, mixed.own_pixels if own is None else own
        try:
            with mixed.joining(self) as encoding:
                output = stock.get_image_features(self, *args, **kwargs)  # type: ignore[attr-defined]
            return output if encoding is None else encoding.handed_on(output)
        finally:
            mixed.own_pixels = before

    return _like(stock, {"get_image_features": get_image_features}, encoding_class)


@functools.cache
def reading_class(stock: type) -> type:
    """That class where the mixer has layers in the language model, too.

    It is the call that counts, not `forward`, in whose place other libraries put one of their own.
    """
    encodes: Any = encoding_class(stock)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        # By name, some families' outer models give the first by position.
        names = list(inspect.signature(stock.forward).parameters)[1:]  # type: ignore[attr-defined]
        with self.reading({**dict(zip(names, args, strict=False)), **kwargs}) as inputs:
            return encodes.__call__(self, **inputs)

    def reading(self: Any, inputs: Mapping[str, Any]) -> Any:
        mixed = mixed_of(self)
        return nullcontext(inputs) if mixed is None else read(mixed, family_of(self), self, inputs)

    def pack_image_features(self: Any, image_features: Any, *args: Any, image_newline: Any = None, **rest: Any) -> Any:
        def pack(features: Any, newline: Any) -> Any:
            return encodes.pack_image_features(self, features, *args, image_newline=newline, **rest)

        mixed = mixed_of(self)
        if mixed is not None and mixed.encoding is not None:
            mixed.encoding.pack(image_features, pack)
        return pack(image_features, image_newline)

    methods = {"__call__": call, "reading": reading}
    if hasattr(stock, "pack_image_features"):
        methods["pack_image_features"] = functools.wraps(encodes.pack_image_features)(pack_image_features)
    return _named(encodes, {**methods, "stock": stock, "made_by": reading_class})


@functools.cache
def outer_class(stock: type) -> type:
    """The class of a model whose processor makes pixels for further encoders, too; by name the stock one."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        mixed = mixed_of(self.base_model)
        own = kwargs.pop(EXTRA_PIXELS, None)
        if mixed is None or own is None:
            return stock.forward(self, *args, **kwargs)  # type: ignore[attr-defined]
        before, mixed.own_pixels = mixed.own_pixels, own
        try:
            return stock.forward(self, *args, **kwargs)  # type: ignore[attr-defined]
        finally:
            mixed.own_pixels = before

    return _like(stock, {"forward": forward}, outer_class)


def _like(stock: type, methods: Mapping[str, Any], made_by: Callable[[type], type]) -> type:
    """A subclass that goes by the stock class's name, as saved configurations do, its methods by their signatures."""
    for name, method in methods.items():
        own = getattr(stock, name)
        functools.update_wrapper(method, own)
        parameters = list(inspect.signature(own).parameters.values())
        added = inspect.Parameter(EXTRA_PIXELS, inspect.Parameter.KEYWORD_ONLY, default=None)
        rest = [each for each in parameters if each.kind is inspect.Parameter.VAR_KEYWORD]
        method.__signature__ = inspect.Signature([*(each for each in parameters if each not in rest), added, *rest])
    return _named(stock, {**methods, "stock": stock, "made_by": made_by})


def _named(stock: type, attributes: Mapping[str, Any]) -> type:
    names = {"__module__": stock.__module__, "__qualname__": stock.__qualname__, "__doc__": stock.__doc__}
    return type(stock.__name__, (stock,), {**names, "__reduce_ex__": _pickled, **attributes})


def _pickled(self: Any, protocol: Any) -> Any:
    """The class is made anew, as it has the name of the stock one."""
    kind: Any = type(self)
    return _bare, (kind.made_by, kind.stock), self.__getstate__()


def _bare(made_by: Callable[[type], type], stock: type) -> Any:
    return object.__new__(made_by(stock))
