/* The loops of cuts over the last frames of a source, for speed alone: pipeline/reel.py, cuts.py, ramps.py and wipes.py have the same in
 * NumPy. */

#include "_native.h"

enum { VALUES = 3 * CELLS }; /* blue, green and red */

/* Opens an array of numbers with at least so many. */
static int open_numbers(PyObject *object, Py_buffer *view, Py_ssize_t least, int flags)
{
    return open_bytes(object, view, least * (Py_ssize_t)sizeof(double), flags);
}

PyDoc_STRVAR(compare_doc,
"compare(pictures, levels, at)\n--\n\n"
"Take tiny pictures into a reel: how much each differs from the one before, and how much its values spread.\n\n"
"Args:\n"
"    pictures: uint8 [n, 12, 16, 3].\n"
"    levels: uint8 [.., 576]; n rows from row `at` on are filled, colour after colour.\n"
"    at: 0 for the first of all, which differs from nothing.\n\n"
"Returns:\n"
"    Sums of absolute differences, and mean standard deviations of the three colours, each as a list.");

static double spread_of(const uint8_t *colour)
{
    unsigned sum = 0, squares = 0;
    for (int i = 0; i < CELLS; i++) {
        sum += colour[i];
        squares += (unsigned)colour[i] * colour[i];
    }
    return sqrt((double)CELLS * squares - (double)sum * sum) / CELLS;
}

static PyObject *compare(PyObject *module, PyObject *arguments)
{
    PyObject *pictures_object, *levels_object, *differences = NULL, *spreads = NULL, *result = NULL;
    Py_buffer pictures, levels;
    Py_ssize_t at;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "OOn", &pictures_object, &levels_object, &at))
        return NULL;
    if (open_bytes(pictures_object, &pictures, 0, PyBUF_SIMPLE) < 0)
        return NULL;
    const Py_ssize_t count = pictures.len / VALUES;
    if (at < 0 || count > PY_SSIZE_T_MAX / VALUES - at) {
        PyErr_SetString(PyExc_ValueError, "these rows lie outside of the reel");
        goto close_pictures;
    }
    if (open_bytes(levels_object, &levels, (at + count) * VALUES, PyBUF_WRITABLE) < 0)
        goto close_pictures;
    if (!(differences = PyList_New(count)) || !(spreads = PyList_New(count)))
        goto close_levels;
    const uint8_t *from = pictures.buf;
    uint8_t *row = (uint8_t *)levels.buf + at * VALUES;
    for (Py_ssize_t i = 0; i < count; i++, row += VALUES) {
        for (int j = 0; j < CELLS; j++, from += 3)
            for (int k = 0; k < 3; k++)
                row[k * (CELLS) + j] = from[k];
        double spread = 0;
        for (int k = 0; k < 3; k++)
            spread += spread_of(row + k * (CELLS));
        PyObject *differs = PyLong_FromUnsignedLong(at + i ? difference(row - VALUES, row, VALUES) : 0);
        PyObject *spreads_by = PyFloat_FromDouble(spread / 3);
        if (!differs || !spreads_by || PyList_SetItem(differences, i, differs) < 0 || PyList_SetItem(spreads, i, spreads_by) < 0)
            goto close_levels;
    }
    result = PyTuple_Pack(2, differences, spreads);
close_levels:
    Py_XDECREF(differences);
    Py_XDECREF(spreads);
    PyBuffer_Release(&levels);
close_pictures:
    PyBuffer_Release(&pictures);
    return result;
}

/* ---- frames around a frame ------------------------------------------------------------------------------------------- */

typedef struct {
    const double *times;
    Py_ssize_t count;
    double densest; /* frames a second: where there are more, windows are cut short */
} Reel;

/* The first place from `low` to `high` at which times are not below a time. */
static Py_ssize_t bisect(const Reel *reel, double time, Py_ssize_t low, Py_ssize_t high)
{
    while (low < high) {
        const Py_ssize_t middle = low + (high - low) / 2;
        if (reel->times[middle] < time)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static Py_ssize_t larger(Py_ssize_t a, Py_ssize_t b)
{
    return a > b ? a : b;
}

static Py_ssize_t smaller(Py_ssize_t a, Py_ssize_t b)
{
    return a < b ? a : b;
}

/* `Reel.back` and `Reel.ahead`, counted from the first frame that is kept. */
static Py_ssize_t back(const Reel *reel, Py_ssize_t at, double seconds)
{
    const Py_ssize_t low = bisect(reel, reel->times[at] - seconds - 1e-6, 0, at);
    return larger(0, smaller(larger(low, at - (Py_ssize_t)(reel->densest * seconds)), at - 1));
}

static Py_ssize_t ahead(const Reel *reel, Py_ssize_t at, double seconds)
{
    const Py_ssize_t high = bisect(reel, reel->times[at] + seconds + 1e-6, at, reel->count) - 1;
    return smaller(reel->count - 1, larger(smaller(high, at + (Py_ssize_t)(reel->densest * seconds)), at + 1));
}

/* Tells of a place `at` among those from `low` to `end` which belong to one shot: a new object, or NULL, also where there is
 * nothing to tell. */
typedef PyObject *(*Look)(const void *with, Py_ssize_t number, Py_ssize_t at, Py_ssize_t low, Py_ssize_t end);

/* Looks at places, int64 [n, 3], one after the other; returns a list of what there is to tell. */
static PyObject *looked(const Py_buffer *around, const Reel *reel, Look look, const void *with)
{
    PyObject *result = PyList_New(0);
    const int64_t *place = around->buf;
    const Py_ssize_t count = around->len / (Py_ssize_t)(3 * sizeof(int64_t));
    for (Py_ssize_t i = 0; result && i < count; i++, place += 3) {
        PyObject *found = NULL;
        if (place[0] < 0 || place[1] < 0 || place[0] >= place[2] || place[2] > reel->count)
            PyErr_SetString(PyExc_ValueError, "these frames are not in the reel");
        else
            found = look(with, i, place[0], place[1], place[2]);
        if (PyErr_Occurred() || (found && PyList_Append(result, found) < 0))
            Py_CLEAR(result);
        Py_XDECREF(found);
    }
    return result;
}

/* ---- how far apart two sides are ------------------------------------------------------------------------------------- */

PyDoc_STRVAR(part_doc,
"part(times, change, apart, levels, start, end, all_frames, seconds, densest)\n--\n\n"
"Find out how far apart the two sides of frames are.\n\n"
"Args:\n"
"    times, change: float64 [N].\n"
"    apart: float64 [N], is changed.\n"
"    levels: uint8 [N or more, 576].\n"
"    start, end: of the frames that are looked at, 1 or more and at most N.\n"
"    all_frames: whether not only those are looked at that stick out from their neighbours.\n"
"    seconds: two frames are compared that are at most so far apart.\n"
"    densest: frames a second that windows are meant for.");

static double nearest(const Reel *reel, const uint8_t *levels, Py_ssize_t at, double seconds)
{
    const Py_ssize_t low = back(reel, at, seconds), end = ahead(reel, at - 1, seconds) + 1;
    unsigned least = UINT32_MAX;
    /* All near ones, and fewer of those further away, at no even pace: strobe lights have one. */
    for (Py_ssize_t before = 0; at - 1 - before >= low; before += 1 + before / 5)
        for (Py_ssize_t after = 0; at + after < end; after += 1 + after / 5) {
            const Py_ssize_t i = at - 1 - before, j = at + after;
            if (reel->times[j] - reel->times[i] > seconds + 1e-6)
                break;
            const unsigned differs = difference(levels + i * VALUES, levels + j * VALUES, VALUES);
            least = differs < least ? differs : least;
        }
    return (double)least / VALUES;
}

static PyObject *part(PyObject *module, PyObject *arguments)
{
    PyObject *objects[4], *result = NULL;
    Py_buffer times, change, apart, levels;
    Py_ssize_t start, end;
    double seconds, densest;
    int all_frames;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "OOOOnnpdd", &objects[0], &objects[1], &objects[2], &objects[3], &start, &end, &all_frames,
                          &seconds, &densest))
        return NULL;
    if (open_numbers(objects[0], &times, 0, PyBUF_SIMPLE) < 0)
        return NULL;
    const Reel reel = {times.buf, times.len / (Py_ssize_t)sizeof(double), densest};
    if (open_numbers(objects[1], &change, reel.count, PyBUF_SIMPLE) < 0)
        goto close_times;
    if (open_numbers(objects[2], &apart, reel.count, PyBUF_WRITABLE) < 0)
        goto close_change;
    if (open_bytes(objects[3], &levels, reel.count * VALUES, PyBUF_SIMPLE) < 0)
        goto close_apart;
    if (start < 1 || end > reel.count) {
        PyErr_SetString(PyExc_ValueError, "these frames are not in the reel");
        goto close_levels;
    }
    const double *changes = change.buf;
    for (Py_ssize_t at = start; at < end; at++) {
        const double after = changes[smaller(at + 1, reel.count - 1)], least = changes[at - 1] < after ? changes[at - 1] : after;
        if (!all_frames && (changes[at] < 1.5 || changes[at] < 1.5 * least))
            continue;
        const double found = nearest(&reel, levels.buf, at, seconds);
        ((double *)apart.buf)[at] = found < changes[at] ? found : changes[at];
    }
    result = Py_NewRef(Py_None);
close_levels:
    PyBuffer_Release(&levels);
close_apart:
    PyBuffer_Release(&apart);
close_change:
    PyBuffer_Release(&change);
close_times:
    PyBuffer_Release(&times);
    return result;
}

/* ---- how strong cuts are --------------------------------------------------------------------------------------------- */

PyDoc_STRVAR(strengths_doc,
"strengths(times, change, apart, spread, begins, start, end, flash_s, usual_s, repeat_s, one_colour, densest)\n--\n\n"
"Return how much frames stand out as the first of a shot, 0 for no cut, as a list; see `cut_strength`.\n\n"
"Args:\n"
"    times, change, apart, spread: float64 [N].\n"
"    begins: whether the first frame is the source's first.\n"
"    start, end: of the frames that are looked at, 1 or more and at most N.\n"
"    flash_s, usual_s, repeat_s, one_colour, densest: see pipeline/cuts.py and pipeline/reel.py.");

typedef struct {
    Reel reel;
    const double *change, *apart, *spread;
    double flash_s, usual_s, repeat_s, one_colour;
    int begins;
    double *others; /* room for N numbers */
    signed char *repeats; /* whether each frame repeats another, -1 where that is not known yet */
} Cuts;

static int in_order(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Tells whether a frame shows the one before again, or nearly so, between others that do not. */
static int repeats(const Cuts *cuts, Py_ssize_t at)
{
    if (cuts->repeats[at] < 0) {
        const double *times = cuts->reel.times, *change = cuts->change;
        double before = 0.0, after = 0.0;
        for (Py_ssize_t i = at - 1; i >= 0 && times[i] >= times[at] - cuts->repeat_s; i--)
            before = change[i] > before ? change[i] : before;
        for (Py_ssize_t i = at + 1; i < cuts->reel.count && times[i] <= times[at] + cuts->repeat_s; i++)
            after = change[i] > after ? change[i] : after;
        const double little = 0.1 * (before < after ? before : after);
        cuts->repeats[at] = change[at] <= (little > 0.02 ? little : 0.02);
    }
    return cuts->repeats[at];
}

/* Collects the changes near a frame that say anything; without those to and from one colour, if `telling`. */
static Py_ssize_t others(const Cuts *cuts, Py_ssize_t at, Py_ssize_t low, Py_ssize_t high, int telling)
{
    Py_ssize_t count = 0;
    for (Py_ssize_t i = low; i < high; i++) {
        const double least = i && cuts->spread[i - 1] < cuts->spread[i] ? cuts->spread[i - 1] : cuts->spread[i];
        if (i != at && !repeats(cuts, i) && !(telling && least < cuts->one_colour))
            cuts->others[count++] = cuts->apart[i];
    }
    return count;
}

/* Returns what is usual around a frame: of the changes that say anything, the one that three quarters are below. */
static double usual(const Cuts *cuts, Py_ssize_t at, Py_ssize_t low, Py_ssize_t high)
{
    int plain = 0;
    for (Py_ssize_t i = larger(0, low - 1); i < high; i++)
        plain |= cuts->spread[i] < cuts->one_colour;
    const Py_ssize_t all = others(cuts, at, low, high, 0);
    Py_ssize_t count = plain ? others(cuts, at, low, high, 1) : all;
    if (2 * count < all) /* most do not: at a low rate a flash has a third of the frames near it */
        count = others(cuts, at, low, high, 0);
    qsort(cuts->others, (size_t)count, sizeof(double), in_order);
    return count ? cuts->others[3 * count / 4] : 0.0;
}

static double strength(const Cuts *cuts, Py_ssize_t at)
{
    const Reel *reel = &cuts->reel;
    const Py_ssize_t last = reel->count - 1;
    const double apart = cuts->apart[at];
    double most = cuts->change[at - 1];
    for (Py_ssize_t i = at; i <= smaller(at + 1, last); i++)
        most = cuts->change[i] > most ? cuts->change[i] : most;
    if (apart < 1.5 || apart < 0.12 * most)
        return 0;
    if (reel->times[last] - reel->times[at] < cuts->flash_s && apart < 0.3 * cuts->change[at])
        return 0;
    const Py_ssize_t low = larger(cuts->begins ? 1 : 0, smaller(back(reel, at, cuts->usual_s), at - 2));
    const Py_ssize_t high = smaller(larger(ahead(reel, at, cuts->usual_s), at + 2) + 1, reel->count);
    double full = 3.0;
    for (Py_ssize_t i = at - 1; i <= at; i++)
        full = cuts->spread[i] > full ? cuts->spread[i] : full;
    full = full < 15.0 ? full : 15.0;
    const double around = usual(cuts, at, low, high), share = apart / full;
    return apart / (around > 0.3 ? around : 0.3) * (share < 1.0 ? share : 1.0);
}

static PyObject *strengths(PyObject *module, PyObject *arguments)
{
    PyObject *objects[4], *result = NULL;
    Py_buffer views[4];
    Py_ssize_t start, end;
    Cuts cuts;
    int opened = 0;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "OOOOpnnddddd", &objects[0], &objects[1], &objects[2], &objects[3], &cuts.begins, &start, &end,
                          &cuts.flash_s, &cuts.usual_s, &cuts.repeat_s, &cuts.one_colour, &cuts.reel.densest))
        return NULL;
    for (; opened < 4; opened++) {
        const Py_ssize_t least = opened ? views[0].len / (Py_ssize_t)sizeof(double) : 0;
        if (open_numbers(objects[opened], &views[opened], least, PyBUF_SIMPLE) < 0)
            goto close_views;
    }
    cuts.reel.times = views[0].buf;
    cuts.reel.count = views[0].len / (Py_ssize_t)sizeof(double);
    cuts.change = views[1].buf;
    cuts.apart = views[2].buf;
    cuts.spread = views[3].buf;
    if (start < 1 || end > cuts.reel.count) {
        PyErr_SetString(PyExc_ValueError, "these frames are not in the reel");
        goto close_views;
    }
    cuts.others = malloc((size_t)views[0].len + sizeof(double));
    cuts.repeats = malloc((size_t)cuts.reel.count + 1);
    if (!cuts.others || !cuts.repeats) {
        PyErr_NoMemory();
        goto free_room;
    }
    memset(cuts.repeats, -1, (size_t)cuts.reel.count);
    if ((result = PyList_New(end > start ? end - start : 0)))
        for (Py_ssize_t at = start; at < end; at++) {
            PyObject *number = PyFloat_FromDouble(strength(&cuts, at));
            if (!number || PyList_SetItem(result, at - start, number) < 0) {
                Py_CLEAR(result);
                break;
            }
        }
free_room:
    free(cuts.others);
    free(cuts.repeats);
close_views:
    while (opened--)
        PyBuffer_Release(&views[opened]);
    return result;
}

/* ---- where a ramp may be --------------------------------------------------------------------------------------------- */

PyDoc_STRVAR(directions_doc,
"directions(times, path, spread, levels, around, just_s, reach_s, densest)\n--\n\n"
"Tell around which frames a picture may be on its way to another one; see `directions`.\n\n"
"Args:\n"
"    times, path, spread: float64 [N].\n"
"    levels: uint8 [N or more, 576].\n"
"    around: int64 [n, 3], of each: its place, and the first place and the end of what belongs to the same shot.\n"
"    just_s, reach_s, densest: see pipeline/ramps.py and pipeline/reel.py.\n\n"
"Returns:\n"
"    A list of tuples: which of `around`, and the places just before and just after it.");

typedef struct {
    Reel reel;
    const double *path, *spread;
    const uint8_t *levels;
    double just_s, reach_s;
} Ways;

enum { MARKS = 11 };
static const double LONGEST_S = 0.5; /* between the frames just before and just after */

/* Tells whether more changes around a frame than at some other time nearby. */
static int stirs(const Ways *ways, Py_ssize_t at, Py_ssize_t before, Py_ssize_t after)
{
    const Reel *reel = &ways->reel;
    const double least = 0.7 * (ways->path[after] - ways->path[before]) / (reel->times[after] - reel->times[before]);
    int calm = 0, any = 0;
    Py_ssize_t last = 0;
    for (int i = 0; i < MARKS; i++) {
        const double time = reel->times[at] + (-ways->reach_s + i * (2 * ways->reach_s / (MARKS - 1)));
        const Py_ssize_t mark = smaller(bisect(reel, time, 0, reel->count), reel->count - 1);
        const double lasts = reel->times[mark] - reel->times[i ? last : mark];
        any |= lasts > 0;
        calm |= lasts > 0 && ways->path[mark] - ways->path[last] < least * lasts;
        last = mark;
    }
    return calm || !any;
}

WIDE static int count_above(const uint8_t *a, const uint8_t *b, float least)
{
    int count = 0;
    for (int i = 0; i < VALUES; i++)
        count += (float)abs(a[i] - b[i]) > least;
    return count;
}

/* Tells whether most of the picture becomes another one around a frame. */
static int moves_on(const Ways *ways, Py_ssize_t at, Py_ssize_t low, Py_ssize_t end)
{
    const Py_ssize_t before = larger(low, back(&ways->reel, at, ways->reach_s / 2));
    const Py_ssize_t after = smaller(end - 1, ahead(&ways->reel, at, ways->reach_s / 2));
    double least = ways->spread[before] > ways->spread[after] ? ways->spread[before] : ways->spread[after];
    least = 0.4 * (least < 3.0 ? 3.0 : least > 15.0 ? 15.0 : least);
    return 2 * count_above(ways->levels + before * VALUES, ways->levels + after * VALUES, (float)least) >= VALUES;
}

/* Returns by how much values are off the straight way from a picture to another one, on average. */
static double off_the_way(const uint8_t *a, const uint8_t *middle, const uint8_t *b, float share)
{
    double total = 0;
    for (int i = 0; i < VALUES; i++) {
        volatile float way = share * (float)(b[i] - a[i]); /* one operation at a time */
        total += fabsf((float)(middle[i] - a[i]) - way);
    }
    return total / VALUES;
}

/* Tells whether many values are on a straight way from just before a frame to just after it. */
static int changes_in_step(const Ways *ways, Py_ssize_t at, Py_ssize_t before, Py_ssize_t after)
{
    const double *times = ways->reel.times;
    const uint8_t *a = ways->levels + before * VALUES, *b = ways->levels + after * VALUES;
    const double mean = (double)difference(a, b, VALUES) / VALUES;
    if (mean < 0.5 || count_above(a, b, (float)(0.25 * mean > 0.3 ? 0.25 * mean : 0.3)) < 0.4 * VALUES)
        return 0;
    const double share = (times[at] - times[before]) / (times[after] - times[before]);
    return off_the_way(a, ways->levels + at * VALUES, b, (float)share) < 0.35 * mean;
}

static PyObject *direction(const void *with, Py_ssize_t number, Py_ssize_t at, Py_ssize_t low, Py_ssize_t end)
{
    const Ways *ways = with;
    const Py_ssize_t before = larger(low, back(&ways->reel, at, ways->just_s));
    const Py_ssize_t after = smaller(end - 1, ahead(&ways->reel, at, ways->just_s));
    if (before >= at || at >= after || ways->path[after] - ways->path[before] < 0.5 ||
        ways->reel.times[after] - ways->reel.times[before] > LONGEST_S || !stirs(ways, at, before, after) ||
        !moves_on(ways, at, low, end) || !changes_in_step(ways, at, before, after))
        return NULL;
    return Py_BuildValue("nnn", number, before, after);
}

static PyObject *directions(PyObject *module, PyObject *arguments)
{
    PyObject *objects[5], *result = NULL;
    Py_buffer views[5];
    Ways ways;
    int opened = 0;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "OOOOOddd", &objects[0], &objects[1], &objects[2], &objects[3], &objects[4], &ways.just_s,
                          &ways.reach_s, &ways.reel.densest))
        return NULL;
    for (; opened < 5; opened++) { /* as many rows of levels, and numbers of the others, as there are times */
        const Py_ssize_t count = opened && opened < 4 ? views[0].len / (Py_ssize_t)sizeof(double) : 0;
        const Py_ssize_t least = count * (opened == 3 ? VALUES : (Py_ssize_t)sizeof(double));
        if (open_bytes(objects[opened], &views[opened], least, PyBUF_SIMPLE) < 0)
            goto close_views;
    }
    ways.reel.times = views[0].buf;
    ways.reel.count = views[0].len / (Py_ssize_t)sizeof(double);
    ways.path = views[1].buf;
    ways.spread = views[2].buf;
    ways.levels = views[3].buf;
    result = looked(&views[4], &ways.reel, direction, &ways);
close_views:
    while (opened--)
        PyBuffer_Release(&views[opened]);
    return result;
}

/* ---- where a wipe may be --------------------------------------------------------------------------------------------- */

PyDoc_STRVAR(stepping_doc,
"stepping(times, levels, around, reach_s, at_once_s, densest)\n--\n\n"
"Tell around which frames most values make one step each, and not all at once; see `stepping` of pipeline/wipes.py.\n\n"
"Args:\n"
"    times: float64 [N].\n"
"    levels: uint8 [N or more, 576].\n"
"    around: int64 [n, 3], as for `directions`.\n"
"    reach_s, at_once_s, densest: see pipeline/wipes.py and pipeline/reel.py.\n\n"
"Returns:\n"
"    A list of tuples: the first place and the end of each window.");

enum { LEAST_STEP = 10 };

/* What each value does in a window: its largest step over some frames, its way, its largest change, and when that was. */
typedef struct {
    uint8_t step[VALUES], largest[VALUES];
    uint16_t when[VALUES];
    uint32_t way[VALUES];
} Course;

WIDE static void follow(const uint8_t *levels, Py_ssize_t count, Py_ssize_t at_once, Course *course)
{
    memset(course, 0, sizeof *course);
    for (Py_ssize_t i = 0; i + at_once < count; i++, levels += VALUES)
        for (int k = 0; k < VALUES; k++) {
            const uint8_t step = (uint8_t)abs(levels[at_once * VALUES + k] - levels[k]);
            course->step[k] = step > course->step[k] ? step : course->step[k];
        }
    levels -= (count - at_once) * VALUES;
    for (Py_ssize_t i = 0; i + 1 < count; i++, levels += VALUES)
        for (int k = 0; k < VALUES; k++) {
            const uint8_t change = (uint8_t)abs(levels[VALUES + k] - levels[k]);
            course->way[k] += change;
            course->when[k] = change > course->largest[k] ? (uint16_t)i : course->when[k];
            course->largest[k] = change > course->largest[k] ? change : course->largest[k];
        }
}

enum { MOST_FRAMES = 1024 }; /* of a window */

/* Tells whether most values of a window change, each mostly in one step, and not all in the same frame. */
static int steps(const uint8_t *levels, Py_ssize_t count, Py_ssize_t at_once)
{
    const uint8_t *last = levels + (count - 1) * VALUES;
    int change = 0, step = 0, straight = 0, most = 0;
    for (int k = 0; k < VALUES; k++)
        change += abs(last[k] - levels[k]) > LEAST_STEP;
    if (2 * change < VALUES || count <= at_once || count > MOST_FRAMES)
        return 0;
    Course course;
    int moments[MOST_FRAMES] = {0};
    follow(levels, count, at_once, &course);
    for (int k = 0; k < VALUES; k++) {
        const int size = abs(last[k] - levels[k]);
        if (size <= LEAST_STEP)
            continue;
        step += course.step[k] > 0.6 * size;
        straight += course.way[k] <= 3 * (uint32_t)size;
        const int found = ++moments[course.when[k]];
        most = found > most ? found : most;
    }
    return step >= 0.7 * change && 2 * straight >= change && most <= 0.3 * change;
}

typedef struct {
    Reel reel;
    const uint8_t *levels;
    double reach_s, at_once_s;
} Windows;

static PyObject *window(const void *with, Py_ssize_t number, Py_ssize_t at, Py_ssize_t low, Py_ssize_t end)
{
    const Windows *windows = with;
    const Reel *reel = &windows->reel;
    const Py_ssize_t first = larger(low, back(reel, at, windows->reach_s));
    const Py_ssize_t last = smaller(end, ahead(reel, at, windows->reach_s) + 1) - 1;
    (void)number;
    if (last - first < 9)
        return NULL;
    const double lasts = reel->times[last] - reel->times[first], frames = windows->at_once_s * (double)(last - first);
    const double at_once = floor(frames / (lasts > 1e-9 ? lasts : 1e-9) + 0.5);
    if (!steps(windows->levels + first * VALUES, last + 1 - first,
               !(at_once >= 1) ? 1 : at_once > MOST_FRAMES ? MOST_FRAMES : (Py_ssize_t)at_once))
        return NULL;
    return Py_BuildValue("nn", first, last + 1);
}

static PyObject *stepping(PyObject *module, PyObject *arguments)
{
    PyObject *objects[3], *result = NULL;
    Py_buffer views[3];
    Windows windows;
    int opened = 0;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "OOOddd", &objects[0], &objects[1], &objects[2], &windows.reach_s, &windows.at_once_s,
                          &windows.reel.densest))
        return NULL;
    for (; opened < 3; opened++) {
        const Py_ssize_t least = opened == 1 ? views[0].len / (Py_ssize_t)sizeof(double) * VALUES : 0;
        if (open_bytes(objects[opened], &views[opened], least, PyBUF_SIMPLE) < 0)
            goto close_views;
    }
    windows.reel.times = views[0].buf;
    windows.reel.count = views[0].len / (Py_ssize_t)sizeof(double);
    windows.levels = views[1].buf;
    result = looked(&views[2], &windows.reel, window, &windows);
close_views:
    while (opened--)
        PyBuffer_Release(&views[opened]);
    return result;
}

PyMethodDef clipmill_cut_methods[] = {
    {"compare", compare, METH_VARARGS, compare_doc},
    {"part", part, METH_VARARGS, part_doc},
    {"strengths", strengths, METH_VARARGS, strengths_doc},
    {"directions", directions, METH_VARARGS, directions_doc},
    {"stepping", stepping, METH_VARARGS, stepping_doc},
    {NULL, NULL, 0, NULL},
};
