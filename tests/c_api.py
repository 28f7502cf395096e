"""A SavedModel through TensorFlow's C API: the loader of model servers.

    python tests/c_api.py SAVEDMODEL CALLS RESULTS

No Python of TensorFlow is imported. CALLS is a pickled list of (feeds,
fetches): a dict of tensor name to array (float32, uint8, or objects of bytes)
and a list of tensor names. RESULTS gets a list of dicts of tensor name to
array, or for a call that failed (code, message).
"""

import ctypes
import importlib.util
import os
import pickle
import sys

import numpy as np

INVALID_ARGUMENT = 3

_STRING = 7
_DTYPES = {1: np.float32, 3: np.int32, 4: np.uint8, 9: np.int64}
_STRING_SIZE = 24  # bytes of a TF_TString
_POINTER = ctypes.c_void_p


class _Output(ctypes.Structure):
    _fields_ = (("operation", _POINTER), ("index", ctypes.c_int))


class Error(Exception):
    """A status other than OK: code and message."""


class Session:
    """A SavedModel, loaded by `TF_LoadSessionFromSavedModel`."""

    def __init__(self, directory):
        spec = importlib.util.find_spec("tensorflow")  # imports nothing
        [root] = spec.submodule_search_locations
        self._library = ctypes.CDLL(os.path.join(root, "libtensorflow_cc.so.2"))
        self._status = self._call("TF_NewStatus", _POINTER)
        self._graph = self._call("TF_NewGraph", _POINTER)
        tags = (ctypes.c_char_p * 1)(b"serve")
        self._session = self._checked(
            "TF_LoadSessionFromSavedModel",
            _POINTER,
            self._new("TF_NewSessionOptions"),
            _POINTER(),
            os.fsencode(directory),
            tags,
            1,
            _POINTER(self._graph),
            _POINTER(),
        )

    def run(self, feeds, fetches):
        """The tensors named, as a dict of arrays; raises `Error`."""
        inputs = (_Output * len(feeds))(*map(self._output, feeds))
        given = (_POINTER * len(feeds))(*map(self._tensor, feeds.values()))
        outputs = (_Output * len(fetches))(*map(self._output, fetches))
        found = (_POINTER * len(fetches))()
        self._checked(
            "TF_SessionRun",
            None,
            _POINTER(self._session),
            _POINTER(),
            inputs,
            given,
            len(feeds),
            outputs,
            found,
            len(fetches),
            _POINTER(),
            0,
            _POINTER(),
        )
        return dict(zip(fetches, map(self._array, found), strict=True))

    def _call(self, name, result, *arguments):
        function = getattr(self._library, name)
        function.restype = result
        return function(*arguments)

    def _new(self, name):
        return _POINTER(self._call(name, _POINTER))

    def _checked(self, name, result, *arguments):
        value = self._call(name, result, *arguments, _POINTER(self._status))
        status = _POINTER(self._status)
        code = self._call("TF_GetCode", ctypes.c_int, status)
        if code:
            message = self._call("TF_Message", ctypes.c_char_p, status)
            raise Error(code, message.decode())
        return value

    def _output(self, name):
        operation, _, index = name.partition(":")
        found = self._call(
            "TF_GraphOperationByName",
            _POINTER,
            _POINTER(self._graph),
            operation.encode(),
        )
        assert found, f"no operation {operation}"
        return _Output(found, int(index))

    def _tensor(self, array):
        sizes = (ctypes.c_int64 * array.ndim)(*array.shape)
        is_text = array.dtype == object
        number = (
            _STRING
            if is_text
            else next(n for n, d in _DTYPES.items() if d == array.dtype)
        )
        size = _STRING_SIZE * array.size if is_text else array.nbytes
        tensor = self._call(
            "TF_AllocateTensor",
            _POINTER,
            number,
            sizes,
            array.ndim,
            ctypes.c_size_t(size),
        )
        data = self._data(tensor)
        if not is_text:
            array = np.ascontiguousarray(array)
            ctypes.memmove(data, array.ctypes.data, array.nbytes)
            return tensor
        for place, value in enumerate(array.flat):
            text = _POINTER(data + _STRING_SIZE * place)
            self._call("TF_StringInit", None, text)
            length = ctypes.c_size_t(len(value))
            self._call("TF_StringCopy", None, text, value, length)
        return tensor

    def _array(self, tensor):
        tensor = _POINTER(tensor)
        rank = self._call("TF_NumDims", ctypes.c_int, tensor)
        shape = [
            self._call("TF_Dim", ctypes.c_int64, tensor, axis)
            for axis in range(rank)
        ]
        number = self._call("TF_TensorType", ctypes.c_int, tensor)
        data = self._data(tensor.value)
        if number != _STRING:
            array = np.empty(shape, _DTYPES[number])
            ctypes.memmove(array.ctypes.data, data, array.nbytes)
            return array
        array = np.empty(shape, object)
        for place in range(array.size):
            text = _POINTER(data + _STRING_SIZE * place)
            start = self._call("TF_StringGetDataPointer", _POINTER, text)
            size = self._call("TF_StringGetSize", ctypes.c_size_t, text)
            array.flat[place] = ctypes.string_at(start, size)
        return array

    def _data(self, tensor):
        return self._call("TF_TensorData", _POINTER, _POINTER(tensor))


def main(directory, calls, results):
    """Makes all calls, one after the other, in one session."""
    with open(calls, "rb") as file:
        calls = pickle.load(file)
    session = Session(directory)
    answers = []
    for feeds, fetches in calls:
        try:
            answers.append(session.run(feeds, fetches))
        except Error as error:
            answers.append(error.args)
    assert "tensorflow" not in sys.modules
    with open(results, "wb") as file:
        pickle.dump(answers, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
