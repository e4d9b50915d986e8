/* Holds, compiled: what held.py does, and of reuse.py what is plain sailing; see _engine.c, whose guarantees hold here too.
 *
 * Everything but `find` is for who holds the stripe's lock. What needs a recovery, a new table, a chunk, memory for a ledger or an
 * ordinal of another space, and whatever looks damaged, is answered with None before anything was stored, and reuse.py does it.
 */

#include "_engine.h"

/* ---- counts of what this process holds already: the same as the class Held of held.py */

typedef struct {
    PyObject_HEAD
    PyObject *words, *by_value, *by_ref;
    Py_buffer mark; /* 1 unless this process was forked past the hooks */
} Hot;

/* The entry of a key, borrowed; NULL where there is none. Nobody else runs until the caller returns. Only a key that runs code of
 * its own, say a subclass's, leaves an exception: a signal handler's must not be lost. */
static PyObject *get_entry(const Hot *self, PyObject *entries, PyObject *key)
{
    PyObject *entry = PyDict_GetItemWithError(entries, key);
    if (!entry && PyErr_Occurred()
        && (PyErr_ExceptionMatches(PyExc_KeyError) || PyErr_ExceptionMatches(PyExc_TypeError) || PyErr_ExceptionMatches(PyExc_ValueError)))
        PyErr_Clear();
    return entry && PyTuple_Check(entry) && *(char *)self->mark.buf ? entry : NULL;
}

/* The word of a count, by its index in an entry; NULL if it is not in the segment. */
static uint64_t *count_word(const Py_buffer *buffer, PyObject *entry, Py_ssize_t place)
{
    PyObject *number = PyTuple_GetItem(entry, place);
    uint64_t index;
    if (!number || !read_word(number, &index) || index >= (uint64_t)buffer->len / 8) return NULL;
    return (uint64_t *)buffer->buf + index;
}

/* Add 1 to the counts of an entry, from place `first` to 2, the last one first, and give its ref; or None. */
static PyObject *count_up(Hot *self, PyObject *value, Py_ssize_t first)
{
    Py_buffer buffer;
    PyObject *entry = get_entry(self, self->by_value, value), *ref = NULL;
    if (!entry) return PyErr_Occurred() ? NULL : none();
    if (PyObject_GetBuffer(self->words, &buffer, PyBUF_WRITABLE)) return NULL;
    uint64_t *holds = count_word(&buffer, entry, first), *uses = count_word(&buffer, entry, 2);
    if (holds && uses) ref = PyTuple_GetItem(entry, 0);
    if (ref && (load(holds) == UINT64_MAX || load(uses) == UINT64_MAX)) ref = Py_None; /* damaged: a count must not start over */
    Py_XINCREF(ref);
    if (ref && ref != Py_None) {
        store(uses, load(uses) + 1);
        if (holds != uses) store(holds, load(holds) + 1);
    }
    PyBuffer_Release(&buffer);
    if (!ref && !PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "an entry's word is not in the segment");
    return ref;
}

static PyObject *Hot_take(Hot *self, PyObject *value) { return count_up(self, value, 1); }

static PyObject *Hot_use(Hot *self, PyObject *value) { return count_up(self, value, 2); }

static PyObject *Hot_give(Hot *self, PyObject *ref)
{
    Py_buffer buffer;
    PyObject *entry = get_entry(self, self->by_ref, ref);
    bool given = false;
    if (!entry && PyErr_Occurred()) return NULL;
    if (entry) {
        if (PyObject_GetBuffer(self->words, &buffer, PyBUF_WRITABLE)) return NULL;
        uint64_t *holds = count_word(&buffer, entry, 1);
        given = holds && load(holds) > 1;
        if (given) store(holds, load(holds) - 1);
        PyBuffer_Release(&buffer);
        if (PyErr_Occurred()) return NULL;
    }
    return PyBool_FromLong(given);
}

static PyObject *Hot_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"words", "by_value", "by_ref", "mark", NULL};
    PyObject *words, *by_value, *by_ref, *mark;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!O!O!O", names, &PyMemoryView_Type, &words, &PyDict_Type, &by_value,
                                     &PyDict_Type, &by_ref, &mark))
        return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Hot *self = (Hot *)allocate(type, 0);
    if (!self) return NULL;
    if (PyObject_GetBuffer(mark, &self->mark, PyBUF_SIMPLE) || !self->mark.len) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "the mark is a byte");
        Py_DECREF(self);
        return NULL;
    }
    Py_INCREF(words);
    Py_INCREF(by_value);
    Py_INCREF(by_ref);
    self->words = words;
    self->by_value = by_value;
    self->by_ref = by_ref;
    return (PyObject *)self;
}

static void Hot_dealloc(Hot *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    if (self->mark.obj) PyBuffer_Release(&self->mark);
    Py_CLEAR(self->words);
    Py_CLEAR(self->by_value);
    Py_CLEAR(self->by_ref);
    release(self);
    Py_DECREF(type);
}

static PyMethodDef hot_methods[] = {
    {"take", (PyCFunction)Hot_take, METH_O, "Hold a value once more, and count a use; its ref, or None and nothing was changed."},
    {"give", (PyCFunction)Hot_give, METH_O, "Give a hold back that is not the last; False, and nothing was changed, if it may be."},
    {"use", (PyCFunction)Hot_use, METH_O, "Count a use; the ref, or None and nothing was changed."},
    {NULL},
};

static PyType_Slot hot_slots[] = {
    {Py_tp_new, Hot_new},
    {Py_tp_dealloc, Hot_dealloc},
    {Py_tp_methods, hot_methods},
    {Py_tp_doc, "Counts of what a process holds, in the segment behind `words`."},
    {0},
};

static PyType_Spec hot_spec = {"shmpool._engine.Hot", sizeof(Hot), 0, Py_TPFLAGS_DEFAULT, hot_slots};

/* ---- records that go */

typedef struct {
    PyObject_HEAD
    Engine *engine;
    uint64_t shelves_word, rows_word, holds_word, ledger_words, process_count;
} Turnover;

/* What was found of a stripe, and of a value in it. */
typedef struct {
    Table table;
    uint64_t stripe, limit, *row, *shelf;
    uint64_t index; /* of the first slot on the probe path that holds no record; slot_count: there is none */
    uint64_t offset, meta, *record, *stamp; /* of the record, if there is one */
} Place;

static uint64_t space_size(uint64_t value_size)
{
    uint64_t size = (RECORD_SIZE + value_size + WORD_SIZE + 7) & ~(uint64_t)7, step = 8;
    if (size > 128) step = (uint64_t)1 << (64 - __builtin_clzll(size - 1) - 4);
    return (size + step - 1) / step * step;
}

static uint64_t size_class(uint64_t size)
{
    if (size <= 128) return size / 8;
    int doubling = 64 - __builtin_clzll(size - 1);
    return 16 + 8 * (doubling - 8) + ((size - ((uint64_t)1 << (doubling - 1))) >> (doubling - 4));
}

/* Point at the record at an offset; false if its space is not within the limit. */
static bool point(const Engine *engine, uint64_t *words, uint64_t offset, uint64_t meta, Place *at)
{
    uint64_t end = offset + space_size(meta & META_SIZE_MASK);
    at->offset = offset;
    at->meta = meta;
    at->record = words + engine->arena_word + offset / 8;
    at->stamp = words + engine->arena_word + end / 8 - 1;
    return end <= at->limit;
}

static uint64_t ordinal_of(uint64_t meta) { return meta >> META_ORDINAL_SHIFT & META_ORDINAL_MASK; }

static uint64_t generation_of(uint64_t meta) { return meta >> META_GENERATION_SHIFT & MAX_GENERATION; }

static bool go_to(const Turnover *self, uint64_t *words, uint64_t stripe, Place *at)
{
    const Engine *engine = self->engine;
    at->stripe = stripe;
    at->row = words + engine->stripes_word + stripe * STRIPE_WORDS;
    at->shelf = words + self->shelves_word + stripe * SHELF_WORDS;
    return locate(engine, words, stripe, &at->table) && read_limit(engine, words, &at->limit);
}

/* As `find_live` of table.py: 1 found, 0 not there, -1 odd. The second look at the record's word comes after its bytes. */
static int search(const Turnover *self, uint64_t *words, uint64_t hash, const char *value, uint64_t size, Place *at)
{
    const Engine *engine = self->engine;
    uint64_t mask = at->table.slot_count - 1, index = hash & mask;
    const uint64_t *slots = words + at->table.word;
    at->index = at->table.slot_count;
    for (uint64_t i = 0; i <= mask; i++, index = (index + 1) & mask) {
        uint64_t slot = load(slots + index);
        if ((!slot || slot == TOMBSTONE) && at->index > mask) at->index = index;
        if (!slot) return 0;
        if ((slot ^ hash) >> TAG_SHIFT) continue;
        uint64_t offset = slot & LOW_40 & ~(uint64_t)7;
        if (offset + RECORD_SIZE + size > at->limit) continue;
        const uint64_t *record = words + engine->arena_word + offset / 8;
        uint64_t meta = load(record + 1);
        if (!(meta & META_LIVE) || (meta & META_SIZE_MASK) != size || memcmp(record + RECORD_WORDS, value, size)) continue;
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        if (load(record + 1) == meta) return point(engine, words, offset, meta, at) ? 1 : -1;
    }
    return 0;
}

static bool is_expired(const Place *at, uint64_t oldest)
{
    uint64_t stamp = load(at->stamp);
    return stamp && stamp <= oldest;
}

static PyObject *Turnover_find(Turnover *self, PyObject *const *args, Py_ssize_t count)
{
    Py_buffer buffer;
    char *value;
    uint64_t size, oldest;
    if (count != 2) return PyErr_Format(PyExc_TypeError, "find takes a value and a time");
    if (!read_value(args[0], &value, &size) || !read_word(args[1], &oldest) || !pin(self->engine, &buffer)) return NULL;
    uint64_t hash = siphash13(self->engine->key, value, size), stripe = stripe_of(self->engine, hash);
    int64_t found = ODD;
    /* A table that was replaced while it was probed may lack what was inserted since. */
    for (int tries = 0; found == ODD && tries < 64; tries++) {
        Place at;
        if (!go_to(self, buffer.buf, stripe, &at)) break;
        int is_there = at.table.slot_count ? search(self, buffer.buf, hash, value, size, &at) : 0;
        if (is_there < 0) break;
        if (is_there)
            found = is_expired(&at, oldest) ? -1 : (int64_t)(generation_of(at.meta) << GENERATION_SHIFT | at.offset);
        else if (load(at.row + TABLE) == at.table.state)
            found = -1;
    }
    PyBuffer_Release(&buffer);
    return found == ODD ? none() : PyLong_FromLongLong(found);
}

/* This process's ledgers of holds and uses: where they start, and how many columns of them have memory. */
typedef struct {
    uint64_t holds_word, holds_count, uses_word, uses_count;
} Ledgers;

/* Where a record's holds and uses are counted; false if there is no memory for them yet, or no such ordinal. */
static bool count_words(const Turnover *self, const Ledgers *own, uint64_t ordinal, uint64_t stripe, uint64_t counts[2])
{
    uint64_t column = (ordinal << self->engine->stripe_bits) + stripe;
    counts[0] = own->holds_word + column;
    counts[1] = own->uses_word + column;
    return ordinal < self->engine->stripe_capacity && column < own->holds_count && column < own->uses_count;
}

/* A whole record, its second word last: until then it is free. */
static void write_record(const Place *at, uint64_t hash, const char *value, uint64_t size, uint64_t meta)
{
    store(at->stamp, 0);
    store(at->record, hash);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (size) memcpy(at->record + RECORD_WORDS, value, size);
    store(at->record + 1, meta);
}

/* Add to a word that is only a sum: as `_add` of reuse.py. */
static void add(uint64_t *word, int64_t count)
{
    uint64_t sum = load(word), change = count < 0 ? -(uint64_t)count : (uint64_t)count;
    if (count < 0)
        sum = sum < change ? 0 : sum - change;
    else
        sum = sum + change < sum ? UINT64_MAX : sum + change;
    store(word, sum);
}

static uint64_t make_meta(uint64_t ordinal, uint64_t generation, uint64_t size)
{
    return META_LIVE | ordinal << META_ORDINAL_SHIFT | generation << META_GENERATION_SHIFT | size;
}

/* Take the head of a list of free spaces: as `_reuse` of reuse.py. */
static bool reuse(const Turnover *self, uint64_t *words, const Ledgers *own, uint64_t hash, const char *value, uint64_t size,
                  Place *at, uint64_t counts[2])
{
    const Engine *engine = self->engine;
    uint64_t space = space_size(size), *head = at->shelf + FREE + size_class(space), offset = load(head) & LOW_40 & ~(uint64_t)7, used;
    if (offset + RECORD_SIZE > at->limit) return false;
    uint64_t meta = load(words + engine->arena_word + offset / 8 + 1), ordinal = ordinal_of(meta);
    if (meta & META_LIVE || generation_of(meta) == MAX_GENERATION || !point(engine, words, offset, meta, at)
        || space_size(meta & META_SIZE_MASK) != space || !read_used(engine, words, offset / engine->chunk_size, at->stripe, &used)
        || offset % engine->chunk_size + space > used || !count_words(self, own, ordinal, at->stripe, counts))
        return false;
    at->meta = make_meta(ordinal, generation_of(meta) + 1, size);
    store(at->row + INTENT, (uint64_t)INTENT_REUSE << INTENT_SHIFT | offset);
    store(head, load(at->record)); /* the next */
    write_record(at, hash, value, size, at->meta);
    store(words + at->table.word + at->index, make_slot(hash, offset)); /* commits */
    return true;
}

/* As `_append` of reuse.py, into the current chunk and with an ordinal that nobody had. */
static bool append(const Turnover *self, uint64_t *words, const Ledgers *own, uint64_t hash, const char *value, uint64_t size,
                   Place *at, uint64_t counts[2])
{
    const Engine *engine = self->engine;
    uint64_t space = space_size(size), chunk = load(at->row + CHUNK) - 1, ordinal = load(at->shelf + SPACES), used;
    if (chunk >= at->limit / engine->chunk_size || !read_used(engine, words, chunk, at->stripe, &used)
        || space > engine->chunk_size - used || !count_words(self, own, ordinal, at->stripe, counts))
        return false;
    uint64_t offset = chunk * engine->chunk_size + used, *chunk_word = words + engine->chunks_word + chunk;
    if (!point(engine, words, offset, make_meta(ordinal, 0, size), at) || !is_clear(at->record, space)) return false;
    store(at->row + INTENT, (uint64_t)INTENT_INSERT << INTENT_SHIFT | offset);
    write_record(at, hash, value, size, at->meta);
    store(words + at->table.word + at->index, make_slot(hash, offset)); /* commits */
    store(chunk_word, load(chunk_word) + (space << CHUNK_USED_SHIFT));
    store(at->shelf + SPACES, ordinal + 1);
    return true;
}

/* As `hold` and `insert_held` of reuse.py. 1: held; 2: inserted and held; 0: odd, and nothing was stored. */
static int hold(const Turnover *self, uint64_t *words, const Ledgers *own, const char *value, uint64_t size, uint64_t oldest,
                bool may_insert, Place *at, uint64_t counts[2])
{
    uint64_t hash = siphash13(self->engine->key, value, size);
    if (!go_to(self, words, stripe_of(self->engine, hash), at) || load(at->row + INTENT) || !at->table.slot_count) return 0;
    int is_there = search(self, words, hash, value, size, at);
    if (is_there < 0) return 0;
    if (is_there) {
        if (is_expired(at, oldest) || !count_words(self, own, ordinal_of(at->meta), at->stripe, counts)
            || load(words + counts[0]) == UINT64_MAX)
            return 0;
        bool is_unheld = load(at->stamp) != 0;
        if (is_unheld) store(at->row + INTENT, (uint64_t)INTENT_SETTLE << INTENT_SHIFT | at->offset);
        store(words + counts[0], load(words + counts[0]) + 1);
        if (!is_unheld) return 1;
        store(at->stamp, 0);
        add(at->shelf + UNHELD, -1);
        store(at->row + INTENT, 0);
        return 1;
    }
    uint64_t live = load(at->row + COUNT), tombstones = load(at->shelf + TOMBSTONES), ceiling = at->table.slot_count * 3 / 4;
    if (!may_insert || live >= self->engine->stripe_capacity || live >= ceiling || tombstones >= ceiling - live
        || tombstones >= at->table.slot_count / 8 || at->index == at->table.slot_count)
        return 0;
    bool is_tombstone = load(words + at->table.word + at->index) == TOMBSTONE;
    bool has_free = load(at->shelf + FREE + size_class(space_size(size))) != 0;
    if (!(has_free ? reuse : append)(self, words, own, hash, value, size, at, counts)) return 0;
    store(words + counts[0], 1);
    store(at->row + COUNT, live + 1);
    add(at->shelf + TOMBSTONES, is_tombstone ? -1 : 0);
    store(at->row + INTENT, 0);
    return 2;
}

static PyObject *Turnover_hold(Turnover *self, PyObject *const *args, Py_ssize_t count)
{
    Py_buffer buffer;
    char *value;
    uint64_t size, oldest, may_insert, counts[2];
    Ledgers own;
    Place at;
    if (count != 8 || !PyList_Check(args[7]))
        return PyErr_Format(PyExc_TypeError, "hold takes a value, two ledgers, a time, whether it may insert and a list");
    if (!read_value(args[0], &value, &size) || !read_word(args[1], &own.holds_word) || !read_word(args[2], &own.holds_count)
        || !read_word(args[3], &own.uses_word) || !read_word(args[4], &own.uses_count) || !read_word(args[5], &oldest)
        || !read_word(args[6], &may_insert) || !pin(self->engine, &buffer))
        return NULL;
    int done = 0;
    const uint64_t end = self->engine->segment_words;
    if (own.holds_count <= end && own.holds_word <= end - own.holds_count && own.uses_count <= end && own.uses_word <= end - own.uses_count)
        done = hold(self, buffer.buf, &own, value, size, oldest, may_insert, &at, counts);
    PyBuffer_Release(&buffer);
    if (!done) return none();
    /* Into the caller's list, too, before it comes to a point where a signal handler may raise: see HoldingStore.intern. */
    PyObject *handle = PyLong_FromUnsignedLongLong(generation_of(at.meta) << GENERATION_SHIFT | at.offset);
    if (!handle || PyList_Append(args[7], handle)) {
        Py_XDECREF(handle);
        return NULL;
    }
    return Py_BuildValue("NKKO", handle, (unsigned long long)counts[0], (unsigned long long)counts[1],
                         done == 2 ? Py_True : Py_False);
}

/* Whether anybody holds a column's topic, by all rows: 1, 0, or -1 if a row is odd. `without` is a word that counts as 0. */
static int is_held(const Turnover *self, const uint64_t *words, uint64_t column, const uint64_t *without)
{
    bool held = false;
    for (uint64_t row = 0; row < self->process_count; row++) {
        uint64_t epoch, size, state = load(words + self->rows_word + row * PROCESS_WORDS + HOLDS);
        if (!unseal(state, &epoch, &size)) return -1;
        if (size > self->ledger_words * WORD_SIZE) size = self->ledger_words * WORD_SIZE;
        const uint64_t *word = words + self->holds_word + row * self->ledger_words + column;
        if (epoch == self->engine->epoch && (column + 1) * WORD_SIZE <= size && word != without && load(word)) held = true;
    }
    return held;
}

/* The index of the slot that points at a record; slot_count if there is none. */
static uint64_t find_slot(const uint64_t *slots, uint64_t slot_count, uint64_t slot, uint64_t hash)
{
    uint64_t index = hash & (slot_count - 1);
    for (uint64_t i = 0; i < slot_count; i++, index = (index + 1) & (slot_count - 1)) {
        uint64_t seen = load(slots + index);
        if (seen == slot) return index;
        if (!seen) break;
    }
    return slot_count;
}

/* As `remove_slot` of table.py. */
static int64_t remove_slot(uint64_t *slots, uint64_t slot_count, uint64_t index)
{
    uint64_t mask = slot_count - 1;
    int64_t dropped = 0;
    if (load(slots + ((index + 1) & mask))) {
        store(slots + index, TOMBSTONE);
        return 1;
    }
    store(slots + index, 0);
    for (uint64_t i = 0; i < mask; i++, dropped++) {
        index = (index - 1) & mask;
        if (load(slots + index) != TOMBSTONE) break;
        store(slots + index, 0);
    }
    return -dropped;
}

/* Go to the record at an offset, which must be live, have a slot and be the stripe's whose lock is held: `index` is the slot's.
 * False if something is odd. */
static bool go_to_record(const Turnover *self, uint64_t *words, uint64_t stripe, uint64_t offset, Place *at)
{
    const Engine *engine = self->engine;
    if (!read_limit(engine, words, &at->limit) || offset % 8 || offset + RECORD_SIZE > at->limit) return false;
    uint64_t hash = load(words + engine->arena_word + offset / 8), meta = load(words + engine->arena_word + offset / 8 + 1);
    if (!(meta & META_LIVE) || ordinal_of(meta) >= engine->stripe_capacity || stripe_of(engine, hash) != stripe
        || !go_to(self, words, stripe, at)
        || !at->table.slot_count || load(at->row + INTENT) || !point(engine, words, offset, meta, at))
        return false;
    at->index = find_slot(words + at->table.word, at->table.slot_count, make_slot(hash, offset), hash);
    return at->index != at->table.slot_count;
}

/* As `_free` of reuse.py, within an intent. */
static void free_record(uint64_t *words, Place *at)
{
    store(at->record + 1, at->meta & ~META_LIVE); /* commits */
    if (load(at->stamp)) {
        store(at->stamp, 0);
        add(at->shelf + UNHELD, -1);
    }
    add(at->shelf + TOMBSTONES, remove_slot(words + at->table.word, at->table.slot_count, at->index));
    add(at->row + COUNT, -1);
    bool is_retired = generation_of(at->meta) == MAX_GENERATION;
    uint64_t *head = at->shelf + (is_retired ? RETIRED : FREE + size_class(space_size(at->meta & META_SIZE_MASK)));
    store(at->record, load(head));
    store(head, at->offset | OCCUPIED);
}

/* As `drop` of reuse.py, for a record of which this process has one hold: 1 others hold it or it stays, 2 it went, 0 odd. */
static int drop(const Turnover *self, uint64_t *words, uint64_t stripe, uint64_t offset, uint64_t *own, uint64_t now, bool keeps,
                Place *at)
{
    if (!go_to_record(self, words, stripe, offset, at) || load(at->stamp) || load(own) != 1) return 0;
    int others = is_held(self, words, (ordinal_of(at->meta) << self->engine->stripe_bits) + at->stripe, own);
    if (others < 0) return 0;
    store(at->row + INTENT, (uint64_t)INTENT_SETTLE << INTENT_SHIFT | offset);
    store(own, 0);
    if (!others && keeps) {
        store(at->stamp, now);
        add(at->shelf + UNHELD, 1);
    } else if (!others) {
        free_record(words, at);
    }
    store(at->row + INTENT, 0);
    return others || keeps ? 1 : 2;
}

static PyObject *Turnover_evict(Turnover *self, PyObject *const *args, Py_ssize_t count)
{
    Py_buffer buffer;
    uint64_t stripe, offset, stamp;
    Place at;
    if (count != 3) return PyErr_Format(PyExc_TypeError, "evict takes a stripe, an offset and a time");
    if (!read_word(args[0], &stripe) || !read_word(args[1], &offset) || !read_word(args[2], &stamp) || !pin(self->engine, &buffer))
        return NULL;
    uint64_t *words = buffer.buf;
    bool evicted = stamp && go_to_record(self, words, stripe, offset, &at) && load(at.stamp) == stamp
                   && !is_held(self, words, (ordinal_of(at.meta) << self->engine->stripe_bits) + at.stripe, NULL);
    if (evicted) {
        store(at.row + INTENT, (uint64_t)INTENT_SETTLE << INTENT_SHIFT | offset);
        free_record(words, &at);
        store(at.row + INTENT, 0);
    }
    PyBuffer_Release(&buffer);
    return PyBool_FromLong(evicted);
}

static PyObject *Turnover_drop(Turnover *self, PyObject *const *args, Py_ssize_t count)
{
    Py_buffer buffer;
    uint64_t stripe, offset, own, now, keeps;
    Place at;
    if (count != 5) return PyErr_Format(PyExc_TypeError, "drop takes a stripe, an offset, a word, a time and whether what nobody holds stays");
    if (!read_word(args[0], &stripe) || !read_word(args[1], &offset) || !read_word(args[2], &own) || !read_word(args[3], &now)
        || !read_word(args[4], &keeps) || !pin(self->engine, &buffer))
        return NULL;
    int done = 0;
    uint64_t *words = buffer.buf;
    if (own < self->engine->segment_words && (now || !keeps)) done = drop(self, words, stripe, offset, words + own, now, keeps, &at);
    PyBuffer_Release(&buffer);
    if (!done) return none();
    return PyBool_FromLong(done == 2);
}

static PyTypeObject *engine_type; /* one a process, as its module is */

static PyObject *Turnover_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"engine", "shelves_word", "rows_word", "holds_word", "ledger_words", "process_count", NULL};
    PyObject *engine;
    unsigned long long n[5];
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!KKKKK", names, engine_type, &engine, n, n + 1, n + 2, n + 3, n + 4)) return NULL;
    const Engine *made = (Engine *)engine;
    const unsigned long long most = 1ULL << 44; /* words, 2**47 bytes: no more can be mapped; and no sum or product below overflows */
    if (n[0] > most || n[1] > most || n[2] > most || n[3] > most || n[4] > 65536 || made->stripe_capacity > most
        || n[0] + (SHELF_WORDS << made->stripe_bits) > made->segment_words || n[1] + n[4] * PROCESS_WORDS > made->segment_words
        || n[2] + n[3] * n[4] > made->segment_words || made->stripe_capacity << made->stripe_bits > n[3])
        return PyErr_Format(PyExc_ValueError, "no segment is laid out like that");
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Turnover *self = (Turnover *)allocate(type, 0);
    if (!self) return NULL;
    Py_INCREF(engine);
    self->engine = (Engine *)engine;
    self->shelves_word = n[0];
    self->rows_word = n[1];
    self->holds_word = n[2];
    self->ledger_words = n[3];
    self->process_count = n[4];
    return (PyObject *)self;
}

static void Turnover_dealloc(Turnover *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    Py_CLEAR(self->engine);
    release(self);
    Py_DECREF(type);
}

static PyMethodDef turnover_methods[] = {
    {"find", (PyCFunction)(void (*)(void))Turnover_find, METH_FASTCALL,
     "What ReusingStripes.find gives for a value, of those that are not held none that is not since later than a time; or None."},
    {"hold", (PyCFunction)(void (*)(void))Turnover_hold, METH_FASTCALL,
     "Hold a value, or insert it held: handle, words of its holds and uses, whether inserted; or None, and nothing is changed."},
    {"evict", (PyCFunction)(void (*)(void))Turnover_evict, METH_FASTCALL,
     "Free the record at an offset that nobody holds since exactly that time; False, and nothing is changed, if that is not so."},
    {"drop", (PyCFunction)(void (*)(void))Turnover_drop, METH_FASTCALL,
     "Give back this process's only hold of the record at an offset; whether it went; or None, and nothing is changed."},
    {NULL},
};

static PyType_Slot turnover_slots[] = {
    {Py_tp_new, Turnover_new},
    {Py_tp_dealloc, Turnover_dealloc},
    {Py_tp_methods, turnover_methods},
    {Py_tp_doc, "Holds and frees in the segment behind an engine."},
    {0},
};

static PyType_Spec turnover_spec = {"shmpool._engine.Turnover", sizeof(Turnover), 0, Py_TPFLAGS_DEFAULT, turnover_slots};

bool add_reuse(PyObject *module, PyObject *engine)
{
    PyObject *hot = PyType_FromSpec(&hot_spec), *turnover = PyType_FromSpec(&turnover_spec);
    bool added = hot && turnover && !PyModule_AddObjectRef(module, "Hot", hot) && !PyModule_AddObjectRef(module, "Turnover", turnover);
    Py_XDECREF(hot);
    Py_XDECREF(turnover);
    engine_type = (PyTypeObject *)engine;
    Py_INCREF(engine);
    return added;
}
