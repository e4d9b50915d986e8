/* What _engine.c and _reuse.c share: the codes of layout.py, an engine's fields, and how words are read and stored. */

#ifndef SHMPOOL_ENGINE_H
#define SHMPOOL_ENGINE_H

#include <Python.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* Codes of layout.py. engine.py holds CODES against them and refuses a build that has others. */
enum {
    TABLE = 0, INTENT = 1, COUNT = 2, CHUNK = 3, STRIPE_WORDS = 8,
    ARENA_LIMIT_WORD = 40,
    RECORD_SIZE = 16, RECORD_WORDS = 2,
    TAG_SHIFT = 40, OCCUPIED = 1,
    META_ORDINAL_SHIFT = 32, META_SIZE_MASK = 0xFFFF,
    INTENT_INSERT = 1, INTENT_SHIFT = 56,
    CHUNK_EPOCH_SHIFT = 48, CHUNK_USED_SHIFT = 16, CHUNK_OWNER_MASK = 0xFFFF,
    MAX_STRIPE_COUNT = 256,
    TABLE_BITS_MASK = 0xFF, TABLE_REGION_SHIFT = 8,
    INTENT_REUSE = 3, INTENT_SETTLE = 4,
    TOMBSTONE = 2, META_GENERATION_SHIFT = 16, MAX_GENERATION = 0xFFFF, META_ORDINAL_MASK = 0x7FFFFFFF, GENERATION_SHIFT = 40,
    SHELF_WORDS = 96, SPACES = 0, TOMBSTONES = 1, UNHELD = 2, RETIRED = 3, FREE = 6,
    PROCESS_WORDS = 16, HOLDS = 4, WORD_SIZE = 8,
    SEAL_MODULUS = 251, SEAL_SHIFT = 56, SEAL_EPOCH_SHIFT = 40,
};
#define LOW_40 (((uint64_t)1 << 40) - 1)
#define META_LIVE ((uint64_t)1 << 63)
static const int64_t ODD = INT64_MIN; /* for stripe.py to look at; no offset and no ~index is that */

typedef struct {
    PyObject_HEAD
    PyObject *words;
    uint64_t key[2];
    uint64_t epoch; /* of the pool, and the table words of it that stripe.py has found sound, by stripe: both it tells us */
    uint64_t known[MAX_STRIPE_COUNT];
    uint64_t segment_words, stripe_bits, stripes_word, tables_word, stripe_tables_words, min_table_bits, max_table_bits;
    uint64_t stripe_capacity, chunks_word, arena_word, arena_size, chunk_size;
} Engine;

typedef struct {
    uint64_t state, word, slot_count;
} Table;

/* The one way to read a word: once. What another process may change at any time must not be read again after it was checked, and
 * the compiler may read a plain word as often as it likes. */
static inline uint64_t load(const uint64_t *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }

static inline void store(uint64_t *word, uint64_t value) { __atomic_store_n(word, value, __ATOMIC_RELEASE); }

/* Whether a sealed word is sound; then its epoch (0: never written) and its value. */
static inline bool unseal(uint64_t word, uint64_t *epoch, uint64_t *value)
{
    uint64_t body = word & (((uint64_t)1 << SEAL_SHIFT) - 1);
    *epoch = body >> SEAL_EPOCH_SHIFT;
    *value = body & LOW_40;
    return !word || word >> SEAL_SHIFT == body % SEAL_MODULUS + 1;
}

static inline uint64_t make_slot(uint64_t hash, uint64_t offset) { return hash >> TAG_SHIFT << TAG_SHIFT | offset | OCCUPIED; }

static inline uint64_t stripe_of(const Engine *self, uint64_t hash)
{
    return self->stripe_bits ? hash >> (64 - self->stripe_bits) : 0;
}

/* Not Py_RETURN_NONE: built by Python 3.12, where None is immortal, and run by 3.11, where it is not, that loses a reference. */
static inline PyObject *none(void)
{
    Py_INCREF(Py_None);
    return Py_None;
}

static inline bool read_value(PyObject *object, char **value, uint64_t *size)
{
    Py_ssize_t length;
    if (PyBytes_AsStringAndSize(object, value, &length)) return false;
    *size = (uint64_t)length;
    return true;
}

static inline bool read_word(PyObject *object, uint64_t *word)
{
    *word = PyLong_AsUnsignedLongLong(object);
    return *word != (uint64_t)-1 || !PyErr_Occurred();
}

#pragma GCC visibility push(hidden)

/* Whether the stripe's table is known, or the stripe untouched in this epoch: then slot_count is 0. */
bool locate(const Engine *self, const uint64_t *words, uint64_t stripe, Table *table);

/* Whether the arena's limit is sound; then the bytes that are taken and committed. */
bool read_limit(const Engine *self, const uint64_t *words, uint64_t *limit);

/* Whether a chunk's word is that of a stripe and of this epoch; then the bytes used. */
bool read_used(const Engine *self, const uint64_t *words, uint64_t chunk, uint64_t stripe, uint64_t *used);

/* Whether free space is zero, as that of a chunk that was just taken is. Where it is not, stripe.py looks what it holds. */
bool is_clear(const uint64_t *words, uint64_t size);

uint64_t siphash13(const uint64_t key[2], const char *bytes, uint64_t size);

/* Pin the segment; ValueError once it was released. */
bool pin(Engine *self, Py_buffer *buffer);

/* Add the types of _reuse.c to the module; `engine` is the Engine type. */
bool add_reuse(PyObject *module, PyObject *engine);

#pragma GCC visibility pop

#endif
