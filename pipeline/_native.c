/* The loops over samples and pixels of the scan, for speed alone: pipeline/planes.py and pipeline/measures.py have the same in
 * NumPy and OpenCV, give the same bytes (tests/pipeline/test_native.py compares them), and work where this was not compiled.
 * With PORTABLE defined, nothing is written for one kind of processor, and with NARROW nothing for registers of 512 bits.
 *
 * Runs in the decoder's process. Frames are untrusted: every offset is checked against the buffer that it leads into.
 *
 * Legend: h w rows and columns of a plane; a plane has samples of 8 bits, or of 16 of which the lowest `bits` count.
 */

#include "_native.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(PORTABLE)
#define WITH_AVX2
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2")))

static int is_wide(void)
{
    return __builtin_cpu_supports("avx2");
}
#else
#define is_wide() 0
#endif

#if defined(WITH_AVX2) && !defined(NARROW)
#define WITH_AVX512
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi")))

static int is_widest(void)
{
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi");
}
#else
#define is_widest() 0
#endif

enum {
    ROWS = 72, COLUMNS = 128,                /* luma samples of a frame; of the other planes half as many each way */
    SAMPLES = ROWS * COLUMNS, FEW = SAMPLES / 4, PIXELS = FEW * 3,
    BLOCKS = 16, EACH = 4, STRAY_BLOCKS = 2, /* as in pipeline/crop.py */
    BYTE = 1, WORD = 2                       /* bytes of a sample */
};

static inline unsigned sample_at(const uint8_t *at, Py_ssize_t size)
{
    uint16_t word = *at;
    if (size == 2)
        memcpy(&word, at, 2);
    return word;
}

static inline uint8_t clipped(int value)
{
    return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

/* Multiplies with so many 32,768ths, and rounds: one instruction for many numbers, where compilers see it. */
static inline int16_t scaled(int16_t value, int16_t factor)
{
    return (int16_t)((((int)value * factor >> 14) + 1) >> 1);
}

/* What is added to samples, in 32,768ths, to bring them from 16 to 235, or from 16 to 240, over the full range. */
enum { FULL = 0, LUMA = 5387, CHROMA = 4535 };

static inline uint8_t spread(uint8_t sample, int16_t factor)
{
    const int16_t above = (int16_t)(sample - 16);
    return factor == FULL ? sample : clipped((int16_t)(above + scaled(above, factor)));
}

/* ---- every frame ----------------------------------------------------------------------------------------------------- */

#ifdef WITH_AVX2
/* Takes the samples of a row, 16 at a time, where four of them always lie within 16 bytes; tells whether it did. */
AVX2 static int sample_wide(const Plane *plane, const int32_t *rows, int count, const int32_t *columns, int across, uint8_t *out)
{
    int32_t from[COLUMNS / 4];
    __m256i shuffles[COLUMNS / 4];
    if (plane->view.itemsize != 1 || plane->step != 1 || plane->width < 16)
        return 0;
    for (int group = 0; group < across / 4; group++) {
        const int32_t *four = columns + 4 * group, last = (int32_t)plane->width - 16;
        from[group] = four[0] < last ? four[0] : last;
        uint8_t places[16];
        memset(places, 0x80, sizeof places); /* a zero */
        for (int i = 0; i < 4; i++) {
            const int32_t place = four[i] - from[group];
            if (place < 0 || place > 15)
                return 0;
            places[4 * (group % 4) + i] = (uint8_t)place;
        }
        shuffles[group] = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)places));
    }
    for (int i = 0; i + 1 < count; i += 2, out += across) { /* two rows at a time: counts are even */
        const uint8_t *row = plane->samples + rows[i] * plane->row, *next = plane->samples + rows[i + 1] * plane->row;
        for (int group = 0; group < across / 4; group += 4, out += 16) {
            __m256i all = _mm256_setzero_si256();
            for (int k = 0; k < 4; k++) {
                const __m256i near = _mm256_loadu2_m128i((const __m128i *)(next + from[group + k]),
                                                         (const __m128i *)(row + from[group + k]));
                all = _mm256_or_si256(all, _mm256_shuffle_epi8(near, shuffles[group + k]));
            }
            _mm256_storeu2_m128i((__m128i *)(out + across), (__m128i *)out, all);
        }
    }
    return 1;
}
#else
#define sample_wide(plane, rows, count, columns, across, out) 0
#endif

/* Tells whether all places are at least 0 and below `end`. */
WIDE static int are_within(const int32_t *places, int count, Py_ssize_t end)
{
    const int32_t last = end > INT32_MAX ? INT32_MAX : (int32_t)(end - 1);
    int outside = 0;
    for (int i = 0; i < count; i++)
        outside |= (places[i] < 0) | (places[i] > last);
    return !outside;
}

/* Takes the samples of a plane at given rows and columns. */
static void sample(const Plane *plane, const int32_t *rows, int count, const int32_t *columns, int across, int shift,
                   uint8_t *out)
{
    if (is_wide() && sample_wide(plane, rows, count, columns, across, out))
        return;
    for (int i = 0; i < count; i++, out += across) {
        const uint8_t *row = plane->samples + rows[i] * plane->row;
        if (plane->view.itemsize == 1 && plane->step == 1)
            for (int j = 0; j < across; j++)
                out[j] = row[columns[j]];
        else
            for (int j = 0; j < across; j++)
                out[j] = (uint8_t)(sample_at(row + columns[j] * plane->step, plane->view.itemsize) >> shift);
    }
}

/* Means by sums of a cell's samples, of luma and of the others, rounded as OpenCV does: that is not what whole numbers give. */
enum { OF_LUMA = 6 * 8, OF_CHROMA = 3 * 4 };
static uint8_t luma_means[255 * OF_LUMA + 1], chroma_means[255 * OF_CHROMA + 1];

static void make_means(uint8_t *means, int count)
{
    const float scale = 1.0f / (float)count;
    for (int sum = 0; sum <= 255 * count; sum++)
        means[sum] = (uint8_t)lrintf((float)sum * scale);
}

/* Levels over the full range by samples that have it, by those of luma that do not, and by those of the others. */
static uint8_t levels_of_full[256], levels_of_luma[256], levels_of_chroma[256];

static void make_levels(void)
{
    for (int sample = 0; sample < 256; sample++) {
        levels_of_full[sample] = (uint8_t)sample;
        levels_of_luma[sample] = spread((uint8_t)sample, LUMA);
        levels_of_chroma[sample] = spread((uint8_t)sample, CHROMA);
    }
}

/* Adds up samples [12 * down, 16 * wide], cell by cell. */
static void add_up(const uint8_t *samples, int down, int wide, uint16_t *sums)
{
    for (int i = 0; i < CELL_ROWS; i++, sums += CELL_COLUMNS) {
        memset(sums, 0, CELL_COLUMNS * sizeof *sums);
        for (int y = 0; y < down; y++)
            for (int j = 0; j < CELL_COLUMNS; j++)
                for (int x = 0; x < wide; x++)
                    sums[j] = (uint16_t)(sums[j] + *samples++);
    }
}

static void spread_all(const uint8_t *samples, int count, int16_t factor, uint8_t *out)
{
    for (int i = 0; i < count; i++)
        out[i] = spread(samples[i], factor);
}

static inline int descaled(int value)
{
    return (value + (1 << 13)) >> 14;
}

/* Weights in colours, as OpenCV counts: of the difference of blue in blue, of both in green, of the difference of red in red. */
enum { BLUE = 33292 / 2, GREEN_BLUE = -6472, GREEN_RED = -9519, RED = 18678 };

/* Turns samples over the full range into blue, green and red. */
static void colours(const uint8_t *y, const uint8_t *u, const uint8_t *v, uint8_t *pixels)
{
    for (int i = 0; i < FEW; i++) {
        const int16_t blue = (int16_t)(u[i] - 128), red = (int16_t)(v[i] - 128);
        pixels[i] = clipped((int16_t)(y[i] + scaled((int16_t)(4 * blue), BLUE)));
        pixels[FEW + i] = clipped(y[i] + descaled(blue * GREEN_BLUE + red * GREEN_RED));
        pixels[2 * FEW + i] = clipped((int16_t)(y[i] + scaled((int16_t)(2 * red), RED)));
    }
}

#ifdef WITH_AVX2
AVX2 static void add_up_wide(const uint8_t *samples, int down, int wide, uint16_t *sums)
{
    const __m256i zero = _mm256_setzero_si256(), half = _mm256_set1_epi64x(0xFFFFFFFF);
    const int row = wide * CELL_COLUMNS;
    for (int i = 0; i < CELL_ROWS; i++, samples += down * row)
        for (int block = 0; block < row; block += 32) { /* eight samples have one sum; of four, two halves have one each */
            __m256i all = zero, other = zero;
            for (int y = 0; y < down; y++) {
                const __m256i some = _mm256_loadu_si256((const __m256i *)(samples + y * row + block));
                all = _mm256_add_epi64(all, _mm256_sad_epu8(wide == 8 ? some : _mm256_and_si256(some, half), zero));
                other = _mm256_add_epi64(other, _mm256_sad_epu8(_mm256_srli_epi64(some, 32), zero));
            }
            uint64_t first[4], second[4];
            _mm256_storeu_si256((__m256i *)first, all);
            _mm256_storeu_si256((__m256i *)second, other);
            for (int k = 0; k < 4; k++) {
                *sums++ = (uint16_t)first[k];
                if (wide == 4)
                    *sums++ = (uint16_t)second[k];
            }
        }
}

AVX2 static inline __m256i words(const uint8_t *samples)
{
    return _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)samples));
}

/* Puts 32 numbers into bytes, clipped. */
AVX2 static inline void pack(__m256i low, __m256i high, uint8_t *out)
{
    _mm256_storeu_si256((__m256i *)out, _mm256_permute4x64_epi64(_mm256_packus_epi16(low, high), 0xD8));
}

AVX2 static void spread_all_wide(const uint8_t *samples, int count, int16_t factor, uint8_t *out)
{
    const __m256i by = _mm256_set1_epi16(factor), least = _mm256_set1_epi16(16);
    for (int i = 0; i < count; i += 32) {
        __m256i both[2];
        for (int k = 0; k < 2; k++) {
            const __m256i above = _mm256_sub_epi16(words(samples + i + 16 * k), least);
            both[k] = _mm256_add_epi16(above, _mm256_mulhrs_epi16(above, by));
        }
        pack(both[0], both[1], out + i);
    }
}

AVX2 static void colours_wide(const uint8_t *y, const uint8_t *u, const uint8_t *v, uint8_t *pixels)
{
    const __m256i middle = _mm256_set1_epi16(128), of_blue = _mm256_set1_epi16(BLUE), of_red = _mm256_set1_epi16(RED);
    const __m256i of_both = _mm256_set1_epi32((int32_t)((uint32_t)(uint16_t)GREEN_RED << 16 | (uint16_t)GREEN_BLUE));
    const __m256i rounding = _mm256_set1_epi32(1 << 13);
    for (int i = 0; i < FEW; i += 32) {
        __m256i all[3][2];
        for (int k = 0; k < 2; k++) {
            const __m256i luma = words(y + i + 16 * k), blue = _mm256_sub_epi16(words(u + i + 16 * k), middle);
            const __m256i red = _mm256_sub_epi16(words(v + i + 16 * k), middle);
            const __m256i low = _mm256_madd_epi16(_mm256_unpacklo_epi16(blue, red), of_both);
            const __m256i high = _mm256_madd_epi16(_mm256_unpackhi_epi16(blue, red), of_both);
            const __m256i green = _mm256_packs_epi32(_mm256_srai_epi32(_mm256_add_epi32(low, rounding), 14),
                                                     _mm256_srai_epi32(_mm256_add_epi32(high, rounding), 14));
            all[0][k] = _mm256_add_epi16(luma, _mm256_mulhrs_epi16(_mm256_slli_epi16(blue, 2), of_blue));
            all[1][k] = _mm256_add_epi16(luma, green);
            all[2][k] = _mm256_add_epi16(luma, _mm256_mulhrs_epi16(_mm256_slli_epi16(red, 1), of_red));
        }
        for (int k = 0; k < 3; k++)
            pack(all[k][0], all[k][1], pixels + k * FEW + i);
    }
}
#else
#define add_up_wide add_up
#define spread_all_wide spread_all
#define colours_wide colours
#endif

/* Averages samples to cells, and spreads their levels. */
static void average(const uint8_t *samples, int down, int wide, const uint8_t *means, const uint8_t *levels, uint8_t *cells)
{
    uint16_t sums[CELLS];
    (is_wide() ? add_up_wide : add_up)(samples, down, wide, sums);
    for (int i = 0; i < CELLS; i++)
        cells[3 * i] = levels[means[sums[i]]];
}

/* Turns every second sample of luma, and all others, into colours. */
static void colour_samples(const uint8_t *luma, const uint8_t *blue, const uint8_t *red, int full, uint8_t *pixels)
{
    uint8_t few[FEW], levels[3][FEW];
    const uint8_t *samples[3] = {few, blue, red};
    for (int i = 0; i < ROWS / 2; i++)
        for (int j = 0; j < COLUMNS / 2; j++)
            few[i * (COLUMNS / 2) + j] = luma[2 * i * COLUMNS + 2 * j];
    for (int k = 0; k < 3 && !full; k++) {
        (is_wide() ? spread_all_wide : spread_all)(samples[k], FEW, k ? CHROMA : LUMA, levels[k]);
        samples[k] = levels[k];
    }
    (is_wide() ? colours_wide : colours)(samples[0], samples[1], samples[2], pixels);
}

PyDoc_STRVAR(add_doc,
"add(luma, blue, red, places, shift, full, state, cells)\n--\n\n"
"Sample one frame, and compare it with the one before.\n\n"
"Args:\n"
"    luma, blue, red: planes [h, w] of the frame, of 8 or 16 bits.\n"
"    places: int32 [400], rows and columns that are sampled: 72 and 128 of luma, 36 and 64 of each other plane, twice.\n"
"    shift: bits that samples have beyond 8.\n"
"    full: whether samples have the full range.\n"
"    state: uint8 [16128], samples and pixels of the frame before, which those of this one replace.\n"
"    cells: uint8 [12, 16, 3], is filled with means of the samples over the full range.\n\n"
"Returns:\n"
"    By how many levels luma differs from the frame before; mean luma, 0 to 1; mean absolute change of colour, 0 to 1.");

static PyObject *add(PyObject *module, PyObject *arguments)
{
    PyObject *objects[3], *places_object, *state_object, *cells_object, *result = NULL;
    Plane planes[3];
    Py_buffer places, state, cells;
    int shift, full, opened = 0;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "OOOOipOO", &objects[0], &objects[1], &objects[2], &places_object, &shift, &full,
                          &state_object, &cells_object))
        return NULL;
    const int counts[6] = {ROWS, COLUMNS, ROWS / 2, COLUMNS / 2, ROWS / 2, COLUMNS / 2};
    if (open_bytes(places_object, &places, (ROWS + COLUMNS) * 2 * sizeof(int32_t), PyBUF_SIMPLE) < 0)
        return NULL;
    if (open_bytes(state_object, &state, SAMPLES + PIXELS, PyBUF_WRITABLE) < 0)
        goto close_places;
    if (open_bytes(cells_object, &cells, 3 * CELLS, PyBUF_WRITABLE) < 0)
        goto close_state;
    for (; opened < 3; opened++)
        if (open_plane(objects[opened], &planes[opened], WORD) < 0)
            goto close_planes;
    const int32_t *at = places.buf;
    for (int k = 0; k < 6; k++) {
        if (!are_within(at, counts[k], k % 2 ? planes[k / 2].width : planes[k / 2].height)) {
            PyErr_SetString(PyExc_ValueError, "a place lies outside of its plane");
            goto close_planes;
        }
        at += counts[k];
    }
    uint8_t luma[SAMPLES], others[2][FEW], pixels[PIXELS];
    uint8_t *before = state.buf, *out = cells.buf;
    at = places.buf;
    sample(&planes[0], at, ROWS, at + ROWS, COLUMNS, shift, luma);
    at += ROWS + COLUMNS;
    for (int k = 0; k < 2; k++, at += ROWS / 2 + COLUMNS / 2)
        sample(&planes[1 + k], at, ROWS / 2, at + ROWS / 2, COLUMNS / 2, shift, others[k]);
    average(luma, ROWS / CELL_ROWS, COLUMNS / CELL_COLUMNS, luma_means, full ? levels_of_full : levels_of_luma, out);
    for (int k = 0; k < 2; k++)
        average(others[k], ROWS / 2 / CELL_ROWS, COLUMNS / 2 / CELL_COLUMNS, chroma_means,
                full ? levels_of_full : levels_of_chroma, out + 1 + k);
    colour_samples(luma, others[0], others[1], full, pixels);
    int light = 0;
    for (int i = 0; i < CELLS; i++)
        light += out[3 * i];
    const unsigned changed = difference(luma, before, SAMPLES), change = difference(pixels, before + SAMPLES, PIXELS);
    memcpy(before, luma, SAMPLES);
    memcpy(before + SAMPLES, pixels, PIXELS);
    result = Py_BuildValue("ddd", (double)changed / SAMPLES, (double)light / (255.0 * CELLS),
                           (double)change / (255.0 * PIXELS));
close_planes:
    while (opened--)
        PyBuffer_Release(&planes[opened].view);
    PyBuffer_Release(&cells);
close_state:
    PyBuffer_Release(&state);
close_places:
    PyBuffer_Release(&places);
    return result;
}

/* ---- held frames ----------------------------------------------------------------------------------------------------- */

/* Tells whether more blocks of a line than a bar may have are clearly lighter than a bar. */
static int is_lit(const Plane *plane, const uint8_t *line, Py_ssize_t length, Py_ssize_t step, long darkest)
{
    const Py_ssize_t each = length / BLOCKS, stride = each / 4 > 1 ? each / 4 : 1;
    int lit = 0;
    for (int block = 0; each && block < BLOCKS; block++) {
        long total = 0, count = 0;
        for (Py_ssize_t i = 0; i < each; i += stride, count++)
            total += sample_at(line + (block * each + i) * step, plane->view.itemsize);
        lit += 2 * total > 3 * darkest * count;
    }
    return lit > 2 * STRAY_BLOCKS;
}

PyDoc_STRVAR(lines_doc,
"lines(plane, darkest, shift, full, rows, columns)\n--\n\n"
"Average 64 samples of every row and column of a plane in 16 blocks, unless the plane is light at its edges.\n\n"
"Args:\n"
"    plane: luma [h, w] of 8 or 16 bits; no side is shorter than 64.\n"
"    darkest: the level that a bar is no brighter than.\n"
"    shift: bits that samples have beyond 8.\n"
"    full: whether samples have the full range.\n"
"    rows: uint8 [h, 16], is filled.\n"
"    columns: uint8 [w, 16], is filled.\n\n"
"Returns:\n"
"    Whether they were filled: not if the plane has light edges, so that it has no bars.");

static PyObject *lines(PyObject *module, PyObject *arguments)
{
    PyObject *object, *rows_object, *columns_object, *result = NULL;
    Plane plane;
    Py_buffer rows, columns;
    long darkest;
    int shift, full;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "OlipOO", &object, &darkest, &shift, &full, &rows_object, &columns_object))
        return NULL;
    if (open_plane(object, &plane, WORD) < 0)
        return NULL;
    if (open_bytes(rows_object, &rows, plane.height * BLOCKS, PyBUF_WRITABLE) < 0)
        goto close_plane;
    if (open_bytes(columns_object, &columns, plane.width * BLOCKS, PyBUF_WRITABLE) < 0)
        goto close_rows;
    const Py_ssize_t height = plane.height, width = plane.width, size = plane.view.itemsize;
    const uint8_t *samples = plane.samples;
    const int16_t factor = full ? FULL : LUMA;
    const uint8_t *last_row = samples + (height - 1) * plane.row, *last_column = samples + (width - 1) * plane.step;
    if ((is_lit(&plane, samples, width, plane.step, darkest) || is_lit(&plane, last_row, width, plane.step, darkest)) &&
        (is_lit(&plane, samples, height, plane.row, darkest) || is_lit(&plane, last_column, height, plane.row, darkest))) {
        result = Py_NewRef(Py_False);
        goto close_columns;
    }
    enum { TAKEN = BLOCKS * EACH };
    Py_ssize_t across[TAKEN], down[TAKEN];
    for (int i = 0; i < TAKEN; i++) {
        across[i] = (2 * i + 1) * width / (2 * TAKEN) * plane.step;
        down[i] = (2 * i + 1) * height / (2 * TAKEN) * plane.row;
    }
    uint8_t *out = rows.buf;
    for (Py_ssize_t y = 0; y < height; y++)
        for (int block = 0; block < BLOCKS; block++) {
            unsigned total = 0;
            for (int k = 0; k < EACH; k++)
                total += sample_at(samples + y * plane.row + across[block * EACH + k], size);
            *out++ = spread((uint8_t)(total / EACH >> shift), factor);
        }
    for (int block = 0; block < BLOCKS; block++) {
        out = (uint8_t *)columns.buf + block;
        for (Py_ssize_t x = 0; x < width; x++, out += BLOCKS) {
            unsigned total = 0;
            for (int k = 0; k < EACH; k++)
                total += sample_at(samples + down[block * EACH + k] + x * plane.step, size);
            *out = spread((uint8_t)(total / EACH >> shift), factor);
        }
    }
    result = Py_NewRef(Py_True);
close_columns:
    PyBuffer_Release(&columns);
close_rows:
    PyBuffer_Release(&rows);
close_plane:
    PyBuffer_Release(&plane.view);
    return result;
}

PyDoc_STRVAR(halve_doc,
"halve(plane, times, out)\n--\n\n"
"Make a plane smaller: so many times, every four samples become their mean; an odd last row or column is dropped.\n\n"
"Args:\n"
"    plane: [h, w] of 8 bits.\n"
"    times: 1 and more.\n"
"    out: uint8 [h >> times, w >> times], neither 0, is filled.");

/* Halves a plane once; `out` may lie where the plane lies. */
WIDE static void halve_once(const uint8_t *samples, Py_ssize_t row, Py_ssize_t height, Py_ssize_t width, uint8_t *out)
{
    for (Py_ssize_t y = 0; y < height / 2; y++, out += width / 2) {
        const uint8_t *upper = samples + 2 * y * row, *lower = upper + row;
        for (Py_ssize_t x = 0; x < width / 2; x++)
            out[x] = (uint8_t)((upper[2 * x] + upper[2 * x + 1] + lower[2 * x] + lower[2 * x + 1] + 2) >> 2);
    }
}

static PyObject *halve(PyObject *module, PyObject *arguments)
{
    PyObject *object, *out_object, *result = NULL;
    Plane plane;
    Py_buffer out;
    uint8_t *between = NULL;
    int times;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "OiO", &object, &times, &out_object))
        return NULL;
    if (open_plane(object, &plane, BYTE) < 0)
        return NULL;
    Py_ssize_t height = plane.height, width = plane.width;
    if (plane.step != 1 || times < 1 || times > 30 || !(height >> times) || !(width >> times)) {
        PyErr_SetString(PyExc_ValueError, "only planes with whole rows can be halved, and not to nothing");
        goto close_plane;
    }
    if (open_bytes(out_object, &out, (height >> times) * (width >> times), PyBUF_WRITABLE) < 0)
        goto close_plane;
    if (times > 1 && !(between = malloc((size_t)((height / 2) * (width / 2))))) {
        PyErr_NoMemory();
        goto close_out;
    }
    const uint8_t *samples = plane.samples;
    for (Py_ssize_t row = plane.row; times; times--, height /= 2, width /= 2, row = width) {
        uint8_t *to = times > 1 ? between : out.buf;
        halve_once(samples, row, height, width, to);
        samples = to;
    }
    result = Py_NewRef(Py_None);
    free(between);
close_out:
    PyBuffer_Release(&out);
close_plane:
    PyBuffer_Release(&plane.view);
    return result;
}

/* ---- pictures -------------------------------------------------------------------------------------------------------- */

/* One axis of a picture: between which samples every pixel lies, and how much of 2,048 each of the two has in it. */
typedef struct {
    int32_t *at;
    int16_t *weights;  /* two for every pixel */
    uint8_t *shuffles; /* four bytes for every pixel: where its two samples lie from the first of its group; or NULL */
} Axis;

/* A plane on its way to a size: the last two of its rows, brought to the width of the picture; levels are times 128. */
typedef struct {
    Py_ssize_t made_for[2]; /* height and width of planes for which all is ready that they have in common */
    const uint8_t *samples;
    uint8_t *halved, *padded;
    Py_ssize_t height, width, row;
    Axis x, y;
    int16_t *rows[2], *levels; /* and levels of the picture's present row */
    Py_ssize_t held[2];        /* which rows these are */
} Layer;

enum {
    ROOM = 64,    /* bytes after a row that may be read */
    ALIGNED = 64, /* bytes, to which what is read for every row is aligned: registers are as wide, and lines of the cache */
    MOST_AT_ONCE = 32 /* pixels that are made at a time, at the most: rows on the way have room for all of them */
};

static Py_ssize_t rounded_up(Py_ssize_t count)
{
    return (count + MOST_AT_ONCE - 1) / MOST_AT_ONCE * MOST_AT_ONCE;
}

/* As OpenCV does it, to the bit: across, what lies outside of the first and last sample is that sample; down, it is the row. */
static int make_axis(Axis *axis, Py_ssize_t length, Py_ssize_t count, int clamps)
{
    const double scale = 1.0 / ((double)count / (double)length);
    const size_t all = (size_t)rounded_up(count);
    if (!(axis->at = malloc(sizeof(int32_t) * all)) || !(axis->weights = aligned_alloc(ALIGNED, 2 * sizeof(int16_t) * all)))
        return -1;
    memset(axis->weights, 0, 2 * sizeof(int16_t) * all);
    for (Py_ssize_t i = 0; i < count; i++) {
        volatile double place = ((double)i + 0.5) * scale; /* one operation at a time */
        float share = (float)(place - 0.5);
        int32_t at = (int32_t)share;
        at -= (float)at > share;
        share -= (float)at;
        if (clamps && (at < 0 || at >= length - 1)) {
            at = at < 0 ? 0 : (int32_t)length - 1;
            share = 0;
        }
        axis->at[i] = at;
        axis->weights[2 * i] = (int16_t)lrintf((1.0f - share) * 2048.0f);
        axis->weights[2 * i + 1] = (int16_t)lrintf(share * 2048.0f);
    }
    for (size_t i = (size_t)count; i < all; i++)
        axis->at[i] = axis->at[count - 1];
    return 0;
}

static void across(const Layer *layer, Py_ssize_t count, int16_t *out)
{
    const uint8_t *row = layer->padded;
    const int16_t *weights = layer->x.weights;
    for (Py_ssize_t i = 0; i < count; i++) {
        const uint8_t *at = row + layer->x.at[i];
        out[i] = (int16_t)((at[0] * weights[2 * i] + at[1] * weights[2 * i + 1]) >> 4);
    }
}

static void down(const Layer *layer, Py_ssize_t y, Py_ssize_t count, const int16_t *upper, const int16_t *lower, int16_t *out)
{
    const int16_t *weights = layer->y.weights + 2 * y;
    for (Py_ssize_t x = 0; x < count; x++)
        out[x] = (int16_t)((((weights[0] * upper[x]) >> 16) + ((weights[1] * lower[x]) >> 16) + 2) >> 2);
}

static void colour(const int16_t *const *levels, const int32_t *matrix, Py_ssize_t count, uint8_t *out)
{
    for (Py_ssize_t x = 0; x < count; x++)
        for (int k = 0; k < 3; k++) {
            const int32_t *of = matrix + 4 * k;
            out[3 * x + k] = clipped((levels[0][x] * of[0] + levels[1][x] * of[1] + levels[2][x] * of[2] + of[3]) >> 10);
        }
}

#ifdef WITH_AVX2
/* Fills in how groups of pixels are gathered out of so many bytes; not where they lie further apart. */
static int make_shuffles(Axis *axis, Py_ssize_t count, int group, int bytes_at_once)
{
    if (!(axis->shuffles = aligned_alloc(ALIGNED, 4 * (size_t)rounded_up(count))))
        return -1;
    for (Py_ssize_t i = 0; i < rounded_up(count); i++) {
        const int32_t from = axis->at[i] - axis->at[i / group * group];
        if (from > bytes_at_once - 2) {
            free(axis->shuffles);
            axis->shuffles = NULL;
            return 0;
        }
        uint8_t *bytes = axis->shuffles + 4 * i;
        bytes[0] = (uint8_t)from;
        bytes[2] = (uint8_t)(from + 1);
        bytes[1] = bytes[3] = 0x80; /* a zero */
    }
    return 0;
}

AVX2 static void across_wide(const Layer *layer, Py_ssize_t count, int16_t *out)
{
    const __m256i *shuffles = (const __m256i *)layer->x.shuffles, *weights = (const __m256i *)layer->x.weights;
    const uint8_t *const row = layer->padded;
    const int32_t *at = layer->x.at;
    for (Py_ssize_t block = 0; 8 * block < count; block++, at += 8) {
        const __m128i left = _mm_loadu_si128((const __m128i *)(row + at[0]));
        const __m128i right = _mm_loadu_si128((const __m128i *)(row + at[4]));
        const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(left), right, 1);
        const __m256i pairs = _mm256_shuffle_epi8(both, _mm256_loadu_si256(shuffles + block));
        const __m256i sums = _mm256_srai_epi32(_mm256_madd_epi16(pairs, _mm256_loadu_si256(weights + block)), 4);
        const __m128i packed = _mm_packs_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
        _mm_storeu_si128((__m128i *)(out + 8 * block), packed);
    }
}

AVX2 static void down_wide(const Layer *layer, Py_ssize_t y, Py_ssize_t count, const int16_t *upper, const int16_t *lower,
                           int16_t *out)
{
    const __m256i a = _mm256_set1_epi16(layer->y.weights[2 * y]), b = _mm256_set1_epi16(layer->y.weights[2 * y + 1]);
    for (Py_ssize_t x = 0; x < count; x += 16) {
        const __m256i above = _mm256_mulhi_epi16(_mm256_loadu_si256((const __m256i *)(upper + x)), a);
        const __m256i below = _mm256_mulhi_epi16(_mm256_loadu_si256((const __m256i *)(lower + x)), b);
        const __m256i sum = _mm256_add_epi16(_mm256_add_epi16(above, below), _mm256_set1_epi16(2));
        _mm256_storeu_si256((__m256i *)(out + x), _mm256_srai_epi16(sum, 2));
    }
}

/* One row of a matrix, and its offset: weights of luma and blue, in turns, and of red. */
typedef struct {
    __m256i two, one, offset;
} Row;

AVX2 static inline Row row_of(const int32_t *matrix)
{
    return (Row){.two = _mm256_set1_epi32((int32_t)((uint32_t)(uint16_t)matrix[1] << 16 | (uint16_t)matrix[0])),
                 .one = _mm256_set1_epi32((uint16_t)matrix[2]),
                 .offset = _mm256_set1_epi32(matrix[3])};
}

AVX2 static inline __m128i channel_of(const __m256i *pairs, const Row *row)
{
    __m256i sums[2];
    for (int half = 0; half < 2; half++) {
        const __m256i luma = _mm256_madd_epi16(pairs[half], row->two), red = _mm256_madd_epi16(pairs[2 + half], row->one);
        sums[half] = _mm256_srai_epi32(_mm256_add_epi32(_mm256_add_epi32(luma, red), row->offset), 10);
    }
    const __m256i words = _mm256_packs_epi32(sums[0], sums[1]);
    return _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

/* Of 16 pixels in three times 16 bytes: which bytes of red, of green and of blue each has, and zeros where it has others. */
static uint8_t interleaving[3][3][16];

static void make_interleaving(void)
{
    memset(interleaving, 0x80, sizeof interleaving); /* a zero */
    for (int byte = 0; byte < 48; byte++)
        interleaving[byte / 16][byte % 3][byte % 16] = (uint8_t)(byte / 3);
}

/* Makes at least 16 pixels. What stays the same is read before the loop: for all that compilers know, pixels change it. */
AVX2 static void colour_wide(const int16_t *const *levels, const int32_t *matrix, Py_ssize_t count, uint8_t *out)
{
    const int16_t *const luma = levels[0], *const blue = levels[1], *const red = levels[2];
    const Row rows[3] = {row_of(matrix), row_of(matrix + 4), row_of(matrix + 8)};
    __m128i places[3][3];
    memcpy(places, interleaving, sizeof places);
    for (Py_ssize_t next = 0; next < count; next += 16) {
        const Py_ssize_t x = next < count - 16 ? next : count - 16; /* the last ones overlap with those before */
        const __m256i y = _mm256_loadu_si256((const __m256i *)(luma + x)), u = _mm256_loadu_si256((const __m256i *)(blue + x));
        const __m256i v = _mm256_loadu_si256((const __m256i *)(red + x)), zero = _mm256_setzero_si256();
        const __m256i pairs[4] = {_mm256_unpacklo_epi16(y, u), _mm256_unpackhi_epi16(y, u), _mm256_unpacklo_epi16(v, zero),
                                  _mm256_unpackhi_epi16(v, zero)};
        const __m128i first = channel_of(pairs, rows), second = channel_of(pairs, rows + 1), third = channel_of(pairs, rows + 2);
        for (int k = 0; k < 3; k++) {
            const __m128i one = _mm_shuffle_epi8(first, places[k][0]), two = _mm_shuffle_epi8(second, places[k][1]);
            const __m128i all = _mm_or_si128(_mm_or_si128(one, two), _mm_shuffle_epi8(third, places[k][2]));
            _mm_storeu_si128((__m128i *)(out + 3 * x + 16 * k), all);
        }
    }
}

#else
static int make_shuffles(Axis *axis, Py_ssize_t count, int group, int bytes_at_once)
{
    (void)axis, (void)count, (void)group, (void)bytes_at_once;
    return 0;
}
#define across_wide across
#define down_wide down
#define colour_wide colour
#define make_interleaving() (void)0
#endif

#ifdef WITH_AVX512
AVX512 static void across_widest(const Layer *layer, Py_ssize_t count, int16_t *out)
{
    const uint8_t *const row = layer->padded, *const shuffles = layer->x.shuffles;
    const int16_t *const weights = layer->x.weights;
    const int32_t *const at = layer->x.at;
    for (Py_ssize_t x = 0; x < count; x += 16) {
        const __m512i near = _mm512_loadu_si512(row + at[x]), shuffle = _mm512_loadu_si512(shuffles + 4 * x);
        const __m512i pairs = _mm512_maskz_permutexvar_epi8(0x5555555555555555, shuffle, near);
        const __m512i sums = _mm512_srai_epi32(_mm512_madd_epi16(pairs, _mm512_loadu_si512(weights + 2 * x)), 4);
        _mm256_storeu_si256((__m256i *)(out + x), _mm512_cvtsepi32_epi16(sums));
    }
}

AVX512 static void down_widest(const Layer *layer, Py_ssize_t y, Py_ssize_t count, const int16_t *upper, const int16_t *lower,
                               int16_t *out)
{
    const __m512i a = _mm512_set1_epi16(layer->y.weights[2 * y]), b = _mm512_set1_epi16(layer->y.weights[2 * y + 1]);
    for (Py_ssize_t x = 0; x < count; x += 32) {
        const __m512i above = _mm512_mulhi_epi16(_mm512_loadu_si512(upper + x), a);
        const __m512i below = _mm512_mulhi_epi16(_mm512_loadu_si512(lower + x), b);
        const __m512i sum = _mm512_add_epi16(_mm512_add_epi16(above, below), _mm512_set1_epi16(2));
        _mm512_storeu_si512(out + x, _mm512_srai_epi16(sum, 2));
    }
}

typedef struct {
    __m512i two, one, offset;
} WideRow;

AVX512 static inline WideRow wide_row_of(const int32_t *matrix)
{
    return (WideRow){.two = _mm512_set1_epi32((int32_t)((uint32_t)(uint16_t)matrix[1] << 16 | (uint16_t)matrix[0])),
                     .one = _mm512_set1_epi32((uint16_t)matrix[2]),
                     .offset = _mm512_set1_epi32(matrix[3])};
}

AVX512 static inline __m512i wide_channel_of(const __m512i *pairs, const WideRow *row)
{
    __m512i sums[2];
    for (int half = 0; half < 2; half++) {
        const __m512i luma = _mm512_madd_epi16(pairs[half], row->two), red = _mm512_madd_epi16(pairs[2 + half], row->one);
        sums[half] = _mm512_srai_epi32(_mm512_add_epi32(_mm512_add_epi32(luma, red), row->offset), 10);
    }
    return _mm512_packs_epi32(sums[0], sums[1]);
}

/* Of 32 pixels in 96 bytes: where in red and green, eight bytes of each in turns, or else, from 64 on, in blue each byte lies. */
static uint8_t wide_interleaving[128];

static void make_wide_interleaving(void)
{
    for (int byte = 0; byte < 96; byte++) {
        const int pixel = byte / 3, colour = byte % 3;
        wide_interleaving[byte] = (uint8_t)(pixel / 8 * 16 + pixel % 8 + (colour == 1 ? 8 : colour == 2 ? 64 : 0));
    }
}

/* Makes at least 32 pixels, as `colour_wide` does. */
AVX512 static void colour_widest(const int16_t *const *levels, const int32_t *matrix, Py_ssize_t count, uint8_t *out)
{
    const int16_t *const luma = levels[0], *const blue = levels[1], *const red = levels[2];
    const WideRow rows[3] = {wide_row_of(matrix), wide_row_of(matrix + 4), wide_row_of(matrix + 8)};
    const __m512i places = _mm512_loadu_si512(wide_interleaving), further = _mm512_loadu_si512(wide_interleaving + 64);
    for (Py_ssize_t next = 0; next < count; next += 32) {
        const Py_ssize_t x = next < count - 32 ? next : count - 32;
        const __m512i y = _mm512_loadu_si512(luma + x), u = _mm512_loadu_si512(blue + x), v = _mm512_loadu_si512(red + x);
        const __m512i zero = _mm512_setzero_si512();
        const __m512i pairs[4] = {_mm512_unpacklo_epi16(y, u), _mm512_unpackhi_epi16(y, u), _mm512_unpacklo_epi16(v, zero),
                                  _mm512_unpackhi_epi16(v, zero)};
        const __m512i two = _mm512_packus_epi16(wide_channel_of(pairs, rows), wide_channel_of(pairs, rows + 1));
        const __m512i third = _mm512_packus_epi16(wide_channel_of(pairs, rows + 2), zero);
        _mm512_storeu_si512(out + 3 * x, _mm512_permutex2var_epi8(two, places, third));
        _mm256_storeu_si256((__m256i *)(out + 3 * x + 64), _mm512_castsi512_si256(_mm512_permutex2var_epi8(two, further, third)));
    }
}
#else
#define across_widest across_wide
#define down_widest down_wide
#define colour_widest colour_wide
#define make_wide_interleaving() (void)0
#endif

/* The loops for the widest registers that there are; the last makes a row of as many pixels as `least` and more. */
typedef struct {
    int group, bytes_at_once; /* of shuffles; 0 for none */
    Py_ssize_t least;
    void (*across)(const Layer *, Py_ssize_t, int16_t *);
    void (*down)(const Layer *, Py_ssize_t, Py_ssize_t, const int16_t *, const int16_t *, int16_t *);
    void (*colour)(const int16_t *const *, const int32_t *, Py_ssize_t, uint8_t *);
} Loops;

static const Loops *loops_for(Py_ssize_t width)
{
    static const Loops all[] = {{16, 64, 32, across_widest, down_widest, colour_widest},
                                {4, 16, 16, across_wide, down_wide, colour_wide},
                                {0, 0, 1, across, down, colour}};
    return all + (is_widest() && width >= all[0].least ? 0 : is_wide() && width >= all[1].least ? 1 : 2);
}

static void close_layer(Layer *layer)
{
    void *all[] = {layer->halved, layer->padded,    layer->x.at,    layer->x.weights, layer->x.shuffles,
                   layer->y.at,   layer->y.weights, layer->rows[0], layer->rows[1],   layer->levels};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    memset(layer, 0, sizeof *layer);
}

/* Makes what planes of one size have in common on their way to a picture: they are halved while twice as large both ways. */
static int make_layer(Layer *layer, const Plane *plane, Py_ssize_t height, Py_ssize_t width, const Loops *loops)
{
    close_layer(layer);
    Py_ssize_t rows = plane->height, columns = plane->width;
    if (rows >= 2 * height && columns >= 2 * width && !(layer->halved = malloc((size_t)((rows / 2) * (columns / 2)))))
        return -1;
    for (; rows >= 2 * height && columns >= 2 * width; rows /= 2)
        columns /= 2;
    if (make_axis(&layer->x, columns, width, 1) < 0 || make_axis(&layer->y, rows, height, 0) < 0)
        return -1;
    if (loops->group && make_shuffles(&layer->x, width, loops->group, loops->bytes_at_once) < 0)
        return -1;
    int16_t **rooms[] = {&layer->rows[0], &layer->rows[1], &layer->levels};
    for (int i = 0; i < 3; i++)
        if (!(*rooms[i] = aligned_alloc(ALIGNED, sizeof(int16_t) * (size_t)rounded_up(width))))
            return -1;
    if (!(layer->padded = calloc((size_t)columns + ROOM, 1)))
        return -1;
    layer->made_for[0] = plane->height;
    layer->made_for[1] = plane->width;
    return 0;
}

/* Gets a plane ready for a picture. */
static int open_layer(Layer *layer, const Plane *plane, Py_ssize_t height, Py_ssize_t width, const Loops *loops)
{
    const int is_made = layer->made_for[0] == plane->height && layer->made_for[1] == plane->width;
    if (!is_made && make_layer(layer, plane, height, width, loops) < 0)
        return -1;
    layer->samples = plane->samples;
    layer->height = plane->height;
    layer->width = plane->width;
    layer->row = plane->row;
    layer->held[0] = layer->held[1] = -1;
    while (layer->height >= 2 * height && layer->width >= 2 * width) {
        halve_once(layer->samples, layer->row, layer->height, layer->width, layer->halved);
        layer->samples = layer->halved;
        layer->height /= 2;
        layer->row = layer->width /= 2;
    }
    return 0;
}

/* Returns one row of a layer at the width of the picture. */
static const int16_t *layer_row(Layer *layer, Py_ssize_t y, Py_ssize_t width, const Loops *loops)
{
    y = y < 0 ? 0 : y < layer->height ? y : layer->height - 1;
    const int slot = (int)(y & 1);
    if (layer->held[slot] != y) {
        memcpy(layer->padded, layer->samples + y * layer->row, (size_t)layer->width);
        (layer->x.shuffles ? loops->across : across)(layer, width, layer->rows[slot]);
        layer->held[slot] = y;
    }
    return layer->rows[slot];
}

static void draw_layers(Layer *layers, const int32_t *matrix, Py_ssize_t height, Py_ssize_t width, const Loops *loops,
                        uint8_t *out)
{
    const int16_t *const levels[3] = {layers[0].levels, layers[1].levels, layers[2].levels};
    for (Py_ssize_t y = 0; y < height; y++, out += 3 * width) {
        for (Layer *layer = layers; layer < layers + 3; layer++) {
            const Py_ssize_t at = layer->y.at[y];
            const int16_t *upper = layer_row(layer, at, width, loops), *lower = layer_row(layer, at + 1, width, loops);
            loops->down(layer, y, width, upper, lower, layer->levels);
        }
        loops->colour(levels, matrix, width, out);
    }
}

/* Takes a matrix float32 [3, 4] as whole numbers, times 1,024. */
static int whole_numbers(const float *matrix, int32_t *numbers)
{
    for (int i = 0; i < 12; i++) {
        const float number = matrix[i], most = i % 4 == 3 ? 8192.0f : 31.0f;
        if (!(fabsf(number) < most)) {
            PyErr_SetString(PyExc_ValueError, "a number of the matrix is too large");
            return -1;
        }
        const float scaled_up = i % 4 == 3 ? (number + 0.5f) * 1024.0f : number * 1024.0f;
        numbers[i] = (int32_t)lrintf(scaled_up);
    }
    return 0;
}

PyDoc_STRVAR(draw_doc,
"draw(frames, pictures)\n--\n\n"
"Turn frames into RGB pictures of any size: each plane is halved while it is twice as large, then scaled linearly.\n\n"
"Args:\n"
"    frames: F tuples of luma, blue and red, planes [h, w] of 8 bits with whole rows, not all of one size, and a matrix:\n"
"        float32 [3, 4], from these to red, green and blue; no number reaches 31, or 8,192 in the last column.\n"
"    pictures: uint8 [F, Y, X, 3], is filled; no side is longer than 32,767.");

/* Draws one frame into a picture [height, width, 3]. */
static int draw_frame(PyObject *frame, Layer *layers, Py_ssize_t height, Py_ssize_t width, uint8_t *out)
{
    PyObject *objects[3], *matrix_object;
    Plane planes[3];
    Py_buffer matrix;
    int32_t numbers[12];
    int opened = 0, result = -1;
    if (!PyTuple_Check(frame)) {
        PyErr_SetString(PyExc_TypeError, "a frame is a tuple of planes and a matrix");
        return -1;
    }
    if (!PyArg_ParseTuple(frame, "OOOO", &objects[0], &objects[1], &objects[2], &matrix_object))
        return -1;
    if (open_bytes(matrix_object, &matrix, sizeof numbers, PyBUF_SIMPLE) < 0)
        return -1;
    for (; opened < 3; opened++)
        if (open_plane(objects[opened], &planes[opened], BYTE) < 0)
            goto close_planes;
    if (planes[0].step != 1 || planes[1].step != 1 || planes[2].step != 1) {
        PyErr_SetString(PyExc_ValueError, "only planes with whole rows are drawn");
        goto close_planes;
    }
    if (whole_numbers(matrix.buf, numbers) < 0)
        goto close_planes;
    const Loops *loops = loops_for(width);
    for (int k = 0; k < 3; k++)
        if (open_layer(&layers[k], &planes[k], height, width, loops) < 0) {
            PyErr_NoMemory();
            goto close_planes;
        }
    draw_layers(layers, numbers, height, width, loops, out);
    result = 0;
close_planes:
    while (opened--)
        PyBuffer_Release(&planes[opened].view);
    PyBuffer_Release(&matrix);
    return result;
}

static PyObject *draw(PyObject *module, PyObject *arguments)
{
    PyObject *frames, *pictures_object, *result = NULL;
    Layer layers[3];
    Py_buffer pictures;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "OO", &frames, &pictures_object))
        return NULL;
    if (PyObject_GetBuffer(pictures_object, &pictures, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE) < 0)
        return NULL;
    memset(layers, 0, sizeof layers);
    const Py_ssize_t *shape = pictures.shape, count = PySequence_Size(frames);
    if (count < 0)
        goto close_pictures;
    const int shaped = pictures.ndim == 4 && pictures.itemsize == 1 && shape[0] == count && shape[3] == 3;
    if (!shaped || shape[1] < 1 || shape[2] < 1 || shape[1] > INT16_MAX || shape[2] > INT16_MAX) {
        PyErr_SetString(PyExc_ValueError, "every frame is drawn in a picture of its own with three bytes a pixel");
        goto close_pictures;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *frame = PySequence_GetItem(frames, i);
        const int drawn = frame ? draw_frame(frame, layers, shape[1], shape[2], (uint8_t *)pictures.buf + i * pictures.strides[0])
                                : -1;
        Py_XDECREF(frame);
        if (drawn < 0)
            goto close_pictures;
    }
    result = Py_NewRef(Py_None);
close_pictures:
    for (int k = 0; k < 3; k++)
        close_layer(&layers[k]);
    PyBuffer_Release(&pictures);
    return result;
}

/* ---- measures -------------------------------------------------------------------------------------------------------- */

/* Counts the samples of each level, in turns: two equal ones in a row would wait for each other. */
static void count_levels(const Plane *plane, uint32_t *found)
{
    uint32_t counts[4][256] = {{0}};
    for (Py_ssize_t y = 0; y < plane->height; y++) {
        const uint8_t *row = plane->samples + y * plane->row;
        Py_ssize_t x = 0;
        for (; x + 4 <= plane->width; x += 4, row += 4 * plane->step)
            for (int k = 0; k < 4; k++)
                counts[k][row[k * plane->step]]++;
        for (; x < plane->width; x++, row += plane->step)
            counts[0][*row]++;
    }
    for (int level = 0; level < 256; level++)
        found[level] = counts[0][level] + counts[1][level] + counts[2][level] + counts[3][level];
}

/* Returns the lowest level that at least so many samples are at or below; 256 if there are fewer. */
static int level_at(const uint32_t *found, double count)
{
    double below = 0;
    for (int level = 0; level < 256; level++)
        if ((below += found[level]) >= count)
            return level;
    return 256;
}

PyDoc_STRVAR(levels_doc,
"levels(plane, *counts)\n--\n\n"
"Return the lowest levels that at least so many samples of a plane [h, w] of 8 bits are at or below, as a tuple.");

static PyObject *levels(PyObject *module, PyObject *arguments)
{
    Plane plane;
    PyObject *result = NULL;
    const Py_ssize_t wanted = PyTuple_Size(arguments) - 1;
    (void)module;
    if (wanted < 0) {
        PyErr_SetString(PyExc_TypeError, "levels() takes a plane and counts");
        return NULL;
    }
    if (open_plane(PyTuple_GetItem(arguments, 0), &plane, BYTE) < 0)
        return NULL;
    uint32_t found[256];
    count_levels(&plane, found);
    if (!(result = PyTuple_New(wanted)))
        goto close_plane;
    for (Py_ssize_t i = 0; i < wanted; i++) {
        const double count = PyFloat_AsDouble(PyTuple_GetItem(arguments, 1 + i));
        PyObject *number = PyLong_FromLong(level_at(found, count));
        if (!number || PyErr_Occurred() || PyTuple_SetItem(result, i, number) < 0) {
            Py_CLEAR(result);
            break;
        }
    }
close_plane:
    PyBuffer_Release(&plane.view);
    return result;
}

/* Puts the value that is number k in order at place k, and none that is greater before it. */
static double kth(double *values, Py_ssize_t count, Py_ssize_t k)
{
    Py_ssize_t low = 0, high = count - 1;
    while (low < high) {
        const double pivot = values[low + (high - low) / 2];
        Py_ssize_t i = low, j = high;
        while (i <= j) {
            while (values[i] < pivot)
                i++;
            while (values[j] > pivot)
                j--;
            if (i <= j) {
                const double other = values[i];
                values[i++] = values[j];
                values[j--] = other;
            }
        }
        if (k <= j)
            high = j;
        else if (k >= i)
            low = i;
        else
            break;
    }
    return values[k];
}

static double median(double *values, Py_ssize_t count)
{
    const double upper = kth(values, count, count / 2);
    if (count % 2)
        return upper;
    double lower = values[0];
    for (Py_ssize_t i = 1; i < count / 2; i++)
        lower = values[i] > lower ? values[i] : lower;
    return (lower + upper) / 2;
}

PyDoc_STRVAR(steepness_doc,
"steepness(red, green, blue, count, least)\n--\n\n"
"Return how steep the strongest edges of a picture are, in the colour that has the strongest: step over range, 0 to 1.\n\n"
"Args:\n"
"    red, green, blue: uint8 [Y, X] of one size with whole rows; no side is shorter than 2.\n"
"    count: the strongest edges are where the range around a pixel is not below what so many pixels are at or below.\n"
"    least: where that is less in all colours there are no edges, which gives 1.");

enum { NEAR = 4 }; /* pixels on all sides of one that are around it */

/* Samples in a plane with room for what is around them. */
typedef struct {
    uint8_t *samples, *between; /* as large */
    Py_ssize_t pitch, size;
} Room;

/* Finds the largest of each sample and those one and two steps further. */
WIDE static void largest_of_three(const uint8_t *samples, Py_ssize_t step, Py_ssize_t count, uint8_t *restrict out)
{
    const uint8_t *next = samples + step, *last = next + step;
    for (Py_ssize_t i = 0; i < count; i++) {
        const uint8_t larger = samples[i] > next[i] ? samples[i] : next[i];
        out[i] = larger > last[i] ? larger : last[i];
    }
}

/* Turns light and dark around. */
WIDE static void turn(const uint8_t *samples, Py_ssize_t count, uint8_t *out)
{
    for (Py_ssize_t i = 0; i < count; i++)
        out[i] = 255 - samples[i];
}

/* From the most around each sample, and from 255 less the least, makes the range. */
WIDE static void between(uint8_t *most, const uint8_t *turned, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++)
        most[i] = (uint8_t)(most[i] - (255 - turned[i]));
}

/* Steps to the next samples, right or below, whichever is larger; without the level that rounding may make. */
WIDE static void steps_of(const uint8_t *row, const uint8_t *below, Py_ssize_t count, uint8_t *out)
{
    for (Py_ssize_t x = 0; x < count; x++) {
        const uint8_t right = (uint8_t)abs(row[x + 1] - row[x]), down = (uint8_t)abs(below[x] - row[x]);
        const uint8_t most = right > down ? right : down;
        out[x] = most ? most - 1 : 0;
    }
}

/* Replaces all samples by the largest around each, which moves to the first row and column of what is around it. */
static void enlarge(const Room *room)
{
    const Py_ssize_t row = room->pitch, steps[] = {1, 3, row, 3 * row}; /* of 3 and of 9 samples, across and down */
    uint8_t *from = room->samples, *to = room->between;
    Py_ssize_t count = room->size;
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        largest_of_three(from, steps[i], count -= 2 * steps[i], to);
        uint8_t *other = from;
        from = to;
        to = other;
    }
}

/* Returns the lowest level that at least so many samples are at or below. */
static int lowest_level(const uint8_t *samples, Py_ssize_t count, double wanted)
{
    const Plane all = {.samples = samples, .height = 1, .width = count, .row = count, .step = 1};
    uint32_t found[256];
    count_levels(&all, found);
    return level_at(found, wanted);
}

/* Puts steps over ranges into `values`, where ranges are at least so large; returns how many. */
static Py_ssize_t shares_of(const uint8_t *steps, const uint8_t *ranges, Py_ssize_t count, int least, double *values)
{
    Py_ssize_t among = 0;
    for (Py_ssize_t i = 0; i < count; i++)
        if (ranges[i] >= least)
            values[among++] = (double)steps[i] / ranges[i];
    return among;
}

#ifdef WITH_AVX2
AVX2 static Py_ssize_t count_up_to(const uint8_t *samples, Py_ssize_t count, int level)
{
    const __m256i bound = _mm256_set1_epi8((char)level);
    Py_ssize_t all = 0, i = 0;
    while (i + 32 <= count) {
        __m256i found = _mm256_setzero_si256(); /* less one for each sample at or below, of 255 at the most */
        for (int turns = 255; turns && i + 32 <= count; turns--, i += 32) {
            const __m256i some = _mm256_loadu_si256((const __m256i *)(samples + i));
            found = _mm256_add_epi8(found, _mm256_cmpeq_epi8(_mm256_max_epu8(some, bound), bound));
        }
        const __m256i sums = _mm256_sad_epu8(_mm256_sub_epi8(_mm256_setzero_si256(), found), _mm256_setzero_si256());
        uint64_t four[4];
        _mm256_storeu_si256((__m256i *)four, sums);
        all += (Py_ssize_t)(four[0] + four[1] + four[2] + four[3]);
    }
    for (; i < count; i++)
        all += samples[i] <= level;
    return all;
}

/* By halves: to compare all samples eight times takes less than to count each level. */
AVX2 static int lowest_level_wide(const uint8_t *samples, Py_ssize_t count, double wanted)
{
    int low = 0, high = 256;
    while (low < high) {
        const int middle = (low + high) / 2;
        if ((double)count_up_to(samples, count, middle) >= wanted)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

AVX2 static Py_ssize_t shares_of_wide(const uint8_t *steps, const uint8_t *ranges, Py_ssize_t count, int least, double *values)
{
    const __m256i bound = _mm256_set1_epi8((char)least);
    Py_ssize_t among = 0, i = 0;
    for (; i + 32 <= count; i += 32) {
        const __m256i some = _mm256_loadu_si256((const __m256i *)(ranges + i));
        unsigned hits = (unsigned)_mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_max_epu8(some, bound), some));
        for (; hits; hits &= hits - 1) {
            const Py_ssize_t at = i + __builtin_ctz(hits);
            values[among++] = (double)steps[at] / ranges[at];
        }
    }
    return among + shares_of(steps + i, ranges + i, count - i, least, values + among);
}
#else
#define lowest_level_wide lowest_level
#define shares_of_wide shares_of
#endif

/* Makes a plane smooth against noise, as OpenCV does with a kernel of 27, 202 and 27 of 256. */
WIDE static void blur_rows(const uint8_t *samples, Py_ssize_t row, Py_ssize_t height, Py_ssize_t width, uint16_t *out)
{
    for (Py_ssize_t y = 0; y < height; y++, samples += row, out += width) {
        for (Py_ssize_t x = 1; x < width - 1; x++)
            out[x] = (uint16_t)(27 * (samples[x - 1] + samples[x + 1]) + 202 * samples[x]);
        out[0] = (uint16_t)(54 * samples[1] + 202 * samples[0]);
        out[width - 1] = (uint16_t)(54 * samples[width - 2] + 202 * samples[width - 1]);
    }
}

WIDE static void blur_columns(const uint16_t *rows, Py_ssize_t height, Py_ssize_t width, uint8_t *out)
{
    for (Py_ssize_t y = 0; y < height; y++, out += width) {
        const uint16_t *row = rows + y * width, *above = y ? row - width : row + width;
        const uint16_t *below = y < height - 1 ? row + width : row - width;
        for (Py_ssize_t x = 0; x < width; x++)
            out[x] = (uint8_t)((27 * ((uint32_t)above[x] + below[x]) + 202 * (uint32_t)row[x] + (1 << 15)) >> 16);
    }
}

/* Puts a plane into a room, with zeros around it, and finds the largest around each of its samples. */
static void largest_around(const uint8_t *samples, Py_ssize_t height, Py_ssize_t width, const Room *room, uint8_t *out)
{
    memset(room->samples, 0, (size_t)room->size);
    for (Py_ssize_t y = 0; y < height; y++)
        memcpy(room->samples + (y + NEAR) * room->pitch + NEAR, samples + y * width, (size_t)width);
    enlarge(room);
    for (Py_ssize_t y = 0; y < height; y++)
        memcpy(out + y * width, room->samples + y * room->pitch, (size_t)width);
}

static PyObject *steepness(PyObject *module, PyObject *arguments)
{
    PyObject *objects[3], *result = NULL;
    Plane planes[3];
    double count;
    int least, opened = 0;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "OOOdi", &objects[0], &objects[1], &objects[2], &count, &least))
        return NULL;
    for (; opened < 3; opened++)
        if (open_plane(objects[opened], &planes[opened], BYTE) < 0)
            goto close_planes;
    const Py_ssize_t height = planes[0].height, width = planes[0].width, pixels = height * width;
    for (int k = 0; k < 3; k++)
        if (planes[k].step != 1 || planes[k].height != height || planes[k].width != width || height < 2 || width < 2 ||
            least < 1) {
            PyErr_SetString(PyExc_ValueError, "three planes of one size are wanted, no side shorter than 2, and a range of 1");
            goto close_planes;
        }
    Room room = {.pitch = width + 2 * NEAR, .size = (height + 2 * NEAR) * (width + 2 * NEAR)};
    uint8_t *bytes = malloc((size_t)(2 * room.size + 8 * pixels)); /* a room, and eight planes */
    double *values = malloc(sizeof(double) * (size_t)pixels);      /* at first, blurred rows */
    if (!bytes || !values) {
        PyErr_NoMemory();
        goto free_room;
    }
    room.samples = bytes;
    room.between = bytes + room.size;
    uint8_t *smooth = room.between + room.size, *reach = smooth + 3 * pixels, *one = reach + 3 * pixels, *other = one + pixels;
    int best = 0, strongest = 0;
    for (int k = 0; k < 3; k++) {
        uint8_t *plane = smooth + k * pixels, *range = reach + k * pixels;
        blur_rows(planes[k].samples, planes[k].row, height, width, (uint16_t *)values);
        blur_columns((const uint16_t *)values, height, width, plane);
        turn(plane, pixels, one);
        largest_around(one, height, width, &room, other);
        largest_around(plane, height, width, &room, range);
        between(range, other, pixels);
        const int level = (is_wide() ? lowest_level_wide : lowest_level)(range, pixels, count);
        best = level > strongest ? k : best;
        strongest = level > strongest ? level : strongest;
    }
    Py_ssize_t among = 0;
    if (strongest >= least) {
        const uint8_t *plane = smooth + best * pixels;
        memset(one, 0, (size_t)pixels); /* the last row and column have no step */
        for (Py_ssize_t y = 0; y < height - 1; y++)
            steps_of(plane + y * width, plane + (y + 1) * width, width - 1, one + y * width);
        largest_around(one, height, width, &room, other);
        for (Py_ssize_t at = 0; at < (height - 1) * width; at += width)
            among += (is_wide() ? shares_of_wide : shares_of)(other + at, reach + best * pixels + at, width - 1, strongest,
                                                              values + among);
    }
    result = PyFloat_FromDouble(among ? median(values, among) : 1.0);
free_room:
    free(bytes);
    free(values);
close_planes:
    while (opened--)
        PyBuffer_Release(&planes[opened].view);
    return result;
}

PyDoc_STRVAR(lasting_doc,
"lasting(luma, pictures, edge, faint, mask)\n--\n\n"
"Mark the edges that are at one place in all pictures, and count those that come and go.\n\n"
"Args:\n"
"    luma: uint8 [F * Y, X], pictures on top of one another.\n"
"    pictures: F, 1 and more.\n"
"    edge: a change of luma of more than this, over two pixels, is an edge; one that lasts varies by less.\n"
"    faint: where the least change is below this, an edge comes and goes.\n"
"    mask: uint8 [Y - 2, X - 2], is filled: 1 at edges that last, else 0.\n\n"
"Returns:\n"
"    How many pixels of the pictures have an edge that comes and goes.");

enum { STRETCH = 128 };

WIDE static long lasting_edges(const uint8_t *first, Py_ssize_t row, Py_ssize_t picture, int pictures, int count, int edge,
                               int faint, uint8_t *mask)
{
    int weakest[STRETCH], edges[STRETCH] = {0}, least[2][STRETCH], most[2][STRETCH];
    for (int x = 0; x < STRETCH; x++) {
        weakest[x] = INT32_MAX;
        least[0][x] = least[1][x] = 255;
        most[0][x] = most[1][x] = -255;
    }
    for (; pictures; pictures--, first += picture)
        for (int x = 0; x < count; x++) {
            const int across = first[x + 1] - first[x - 1], down = first[x + row] - first[x - row];
            const int strength = across * across + down * down;
            weakest[x] = strength < weakest[x] ? strength : weakest[x];
            edges[x] += strength > edge * edge;
            least[0][x] = across < least[0][x] ? across : least[0][x];
            most[0][x] = across > most[0][x] ? across : most[0][x];
            least[1][x] = down < least[1][x] ? down : least[1][x];
            most[1][x] = down > most[1][x] ? down : most[1][x];
        }
    long moving = 0;
    for (int x = 0; x < count; x++) {
        const int across = most[0][x] - least[0][x], down = most[1][x] - least[1][x];
        mask[x] = (weakest[x] > edge * edge) & (across * across + down * down < edge * edge);
        moving += weakest[x] < faint * faint ? edges[x] : 0;
    }
    return moving;
}

static PyObject *lasting(PyObject *module, PyObject *arguments)
{
    PyObject *object, *mask_object, *result = NULL;
    Plane luma;
    Py_buffer mask;
    int pictures, edge, faint;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "OiiiO", &object, &pictures, &edge, &faint, &mask_object))
        return NULL;
    if (open_plane(object, &luma, BYTE) < 0)
        return NULL;
    if (luma.step != 1 || pictures < 1 || luma.height % pictures || luma.height / pictures < 3 || luma.width < 3) {
        PyErr_SetString(PyExc_ValueError, "pictures of at least 3 by 3 pixels are wanted");
        goto close_plane;
    }
    const Py_ssize_t height = luma.height / pictures - 2, width = luma.width - 2;
    if (open_bytes(mask_object, &mask, height * width, PyBUF_WRITABLE) < 0)
        goto close_plane;
    long moving = 0;
    for (Py_ssize_t y = 0; y < height; y++)
        for (Py_ssize_t x = 0; x < width; x += STRETCH) {
            const int count = (int)(width - x < STRETCH ? width - x : STRETCH);
            const uint8_t *at = luma.samples + (y + 1) * luma.row + x + 1;
            moving += lasting_edges(at, luma.row, (height + 2) * luma.row, pictures, count, edge, faint,
                                    (uint8_t *)mask.buf + y * width + x);
        }
    result = PyLong_FromLong(moving);
    PyBuffer_Release(&mask);
close_plane:
    PyBuffer_Release(&luma.view);
    return result;
}

PyDoc_STRVAR(writing_doc,
"writing(luma, side, step, least)\n--\n\n"
"Return the share of cells of a picture, uint8 [Y, X], in which strong steps up and down are both frequent.\n\n"
"Args:\n"
"    luma: the picture.\n"
"    side: of a cell, in steps.\n"
"    step: what luma changes by from one pixel to the next in a strong one, more than this.\n"
"    least: strong steps up, and down, that a cell must have more of than this.");

/* Mirrors a place that lies beyond the end, as OpenCV does. */
static inline Py_ssize_t mirrored(Py_ssize_t place, Py_ssize_t count)
{
    return place < count ? place : 2 * (count - 1) - place;
}

WIDE static void count_steps(const uint8_t *row, Py_ssize_t pitch, Py_ssize_t width, int step, uint8_t *up, uint8_t *down)
{
    if (pitch == 1)
        for (Py_ssize_t x = 0; x < width; x++) {
            up[x] += row[x + 1] - row[x] > step;
            down[x] += row[x] - row[x + 1] > step;
        }
    else
        for (Py_ssize_t x = 0; x < width; x++) {
            up[x] += row[(x + 1) * pitch] - row[x * pitch] > step;
            down[x] += row[x * pitch] - row[(x + 1) * pitch] > step;
        }
}

static PyObject *writing(PyObject *module, PyObject *arguments)
{
    PyObject *object;
    Plane luma;
    int side, step;
    double least;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "Oiid", &object, &side, &step, &least))
        return NULL;
    if (open_plane(object, &luma, BYTE) < 0)
        return NULL;
    const Py_ssize_t height = luma.height, width = luma.width - 1;
    if (side < 2 || side > 64 || height < side || width < side) {
        PyErr_SetString(PyExc_ValueError, "a picture with one cell at least is wanted");
        PyBuffer_Release(&luma.view);
        return NULL;
    }
    long cells = 0, found = 0;
    uint8_t *counts = malloc((size_t)(2 * width)); /* of steps up, and down, in the rows of a cell */
    if (!counts) {
        PyBuffer_Release(&luma.view);
        return PyErr_NoMemory();
    }
    for (Py_ssize_t top = 0; top + side / 2 < height; top += side) {
        memset(counts, 0, (size_t)(2 * width));
        for (Py_ssize_t y = top; y < top + side; y++)
            count_steps(luma.samples + mirrored(y, height) * luma.row, luma.step, width, step, counts, counts + width);
        for (Py_ssize_t left = 0; left + side / 2 < width; left += side) {
            int up = 0, down = 0;
            for (Py_ssize_t x = left; x < left + side; x++) {
                up += counts[mirrored(x, width)];
                down += counts[width + mirrored(x, width)];
            }
            cells++;
            found += (up < down ? up : down) > least;
        }
    }
    free(counts);
    PyBuffer_Release(&luma.view);
    return PyFloat_FromDouble((double)found / cells);
}

static PyMethodDef methods[] = {
    {"add", add, METH_VARARGS, add_doc},
    {"lines", lines, METH_VARARGS, lines_doc},
    {"halve", halve, METH_VARARGS, halve_doc},
    {"draw", draw, METH_VARARGS, draw_doc},
    {"levels", levels, METH_VARARGS, levels_doc},
    {"steepness", steepness, METH_VARARGS, steepness_doc},
    {"lasting", lasting, METH_VARARGS, lasting_doc},
    {"writing", writing, METH_VARARGS, writing_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "pipeline._native", "Loops over samples; see the source.", -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void)
{
    make_means(luma_means, OF_LUMA);
    make_means(chroma_means, OF_CHROMA);
    make_levels();
    make_interleaving();
    make_wide_interleaving();
    PyObject *module = PyModule_Create(&definition);
    if (module && PyModule_AddFunctions(module, clipmill_cut_methods) < 0)
        Py_CLEAR(module);
    return module;
}
