/* What the compiled loops share: planes and arrays that come from Python, each checked as it is opened, and tiny pictures. */

#ifndef CLIPMILL_NATIVE_H
#define CLIPMILL_NATIVE_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Compiled for wider registers too, of which the loader takes what the processor has. */
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__) && !defined(PORTABLE)
#define WIDE __attribute__((target_clones("avx2", "default")))
#else
#define WIDE
#endif

/* A plane of a frame: a view of two dimensions. */
typedef struct {
    Py_buffer view;
    const uint8_t *samples;
    Py_ssize_t height, width, row, step;
} Plane;

/* Opens a plane whose samples have at most so many bytes. */
static inline int open_plane(PyObject *object, Plane *plane, Py_ssize_t most)
{
    if (PyObject_GetBuffer(object, &plane->view, PyBUF_STRIDED_RO) < 0)
        return -1;
    const Py_buffer *view = &plane->view;
    if (view->ndim != 2 || view->itemsize < 1 || view->itemsize > most || view->shape[0] < 1 || view->shape[1] < 1) {
        PyErr_Format(PyExc_ValueError, "a plane has two dimensions, none of them empty, and at most %zd bytes a sample", most);
        PyBuffer_Release(&plane->view);
        return -1;
    }
    plane->samples = view->buf;
    plane->height = view->shape[0];
    plane->width = view->shape[1];
    plane->row = view->strides[0];
    plane->step = view->strides[1];
    return 0;
}

/* Opens a contiguous array of bytes that is at least so long. */
static inline int open_bytes(PyObject *object, Py_buffer *view, Py_ssize_t least, int flags)
{
    if (PyObject_GetBuffer(object, view, PyBUF_C_CONTIGUOUS | flags) < 0)
        return -1;
    if (view->len < least) {
        PyErr_Format(PyExc_ValueError, "an array of %zd bytes, where %zd are the least", view->len, least);
        PyBuffer_Release(view);
        return -1;
    }
    return 0;
}

enum { CELL_ROWS = 12, CELL_COLUMNS = 16, CELLS = CELL_ROWS * CELL_COLUMNS }; /* of a tiny picture */

/* Returns the sum of absolute differences. */
WIDE static unsigned difference(const uint8_t *a, const uint8_t *b, int count)
{
    unsigned total = 0;
    for (int i = 0; i < count; i++)
        total += (unsigned)abs(a[i] - b[i]);
    return total;
}

extern PyMethodDef clipmill_cut_methods[]; /* of _cuts.c */

#endif
