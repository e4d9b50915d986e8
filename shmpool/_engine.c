/* The searches and plain inserts of stripe.py, compiled: the same bytes, the same order of stores, checked by the same tests.
 *
 * Anything that is not plain sailing (a stripe to be started, recovered or grown, a chunk to be taken, a word that looks damaged)
 * is answered with None or a shorter list, and stripe.py does it. So nothing here raises for what a segment holds, and nothing here
 * decides what a damaged pool means.
 *
 * Guarantees:
 * - No offset is followed before it was held against what is committed; every loop ends, whatever the bytes say.
 * - A slot is read with acquire and stored with release: on every CPU, who sees a slot sees its record.
 * - The stores of an insert happen in program order, so a `kill -9` between any two leaves what stripe.py's recovery expects.
 * - The GIL is held throughout, and the mapping is pinned by a buffer, so it cannot go away in the middle.
 *
 * Written for the stable ABI of Python 3.11, so that one build serves every later one.
 */

#include "_engine.h"

/* ---- SipHash-1-3 (Aumasson and Bernstein, 2012, with one compression and three finalisation rounds) */

#define ROTATE(x, n) ((x) << (n) | (x) >> (64 - (n)))

static inline void sip_round(uint64_t v[4])
{
    v[0] += v[1]; v[2] += v[3];
    v[1] = ROTATE(v[1], 13) ^ v[0]; v[3] = ROTATE(v[3], 16) ^ v[2];
    v[0] = ROTATE(v[0], 32);
    v[2] += v[1]; v[0] += v[3];
    v[1] = ROTATE(v[1], 17) ^ v[2]; v[3] = ROTATE(v[3], 21) ^ v[0];
    v[2] = ROTATE(v[2], 32);
}

uint64_t siphash13(const uint64_t key[2], const char *bytes, uint64_t size)
{
    uint64_t v[4] = {key[0] ^ 0x736f6d6570736575, key[1] ^ 0x646f72616e646f6d,
                     key[0] ^ 0x6c7967656e657261, key[1] ^ 0x7465646279746573};
    uint64_t block, whole = size & ~(uint64_t)7;
    for (uint64_t i = 0; i < whole; i += 8) {
        memcpy(&block, bytes + i, 8);
        v[3] ^= block;
        sip_round(v);
        v[0] ^= block;
    }
    block = 0;
    memcpy(&block, bytes + whole, size & 7);
    block |= size << 56;
    v[3] ^= block;
    sip_round(v);
    v[0] ^= block;
    v[2] ^= 0xff;
    sip_round(v);
    sip_round(v);
    sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

/* ---- words that are read */

bool locate(const Engine *self, const uint64_t *words, uint64_t stripe, Table *table)
{
    uint64_t epoch, place;
    table->state = load(words + self->stripes_word + stripe * STRIPE_WORDS + TABLE);
    table->slot_count = 0;
    if (!unseal(table->state, &epoch, &place)) return false;
    if (!table->state || table->state != self->known[stripe]) return epoch < self->epoch;
    table->slot_count = (uint64_t)1 << (place & TABLE_BITS_MASK);
    table->word = self->tables_word + stripe * self->stripe_tables_words
                  + 2 * (table->slot_count - ((uint64_t)1 << self->min_table_bits))
                  + (place >> TABLE_REGION_SHIFT & 1) * table->slot_count;
    return true;
}

bool read_limit(const Engine *self, const uint64_t *words, uint64_t *limit)
{
    uint64_t epoch;
    if (!unseal(load(words + ARENA_LIMIT_WORD), &epoch, limit) || epoch > self->epoch) return false;
    if (epoch != self->epoch) *limit = 0;
    return *limit <= self->arena_size && *limit % self->chunk_size == 0;
}

/* What `find` of table.py gives for one table: the record's offset, ~the index of the free slot that ended a search in which
 * tags alone ruled out every slot, or ~slot_count. */
static int64_t search(const Engine *self, const uint64_t *words, const Table *table, uint64_t limit, uint64_t hash,
                      const char *value, uint64_t size, uint64_t *free_index)
{
    const uint64_t *slots = words + table->word;
    uint64_t mask = table->slot_count - 1, index = hash & mask;
    bool ruled_out = true;
    for (uint64_t i = 0; i <= mask; i++, index = (index + 1) & mask) {
        uint64_t slot = load(slots + index);
        if (!slot) {
            *free_index = index;
            return ~(int64_t)(ruled_out ? index : table->slot_count);
        }
        if ((slot ^ hash) >> TAG_SHIFT) continue;
        uint64_t offset = slot & LOW_40 & ~(uint64_t)7;
        if (offset + RECORD_SIZE + size <= limit) {
            const uint64_t *record = words + self->arena_word + offset / 8;
            if ((load(record + 1) & META_SIZE_MASK) == size && !memcmp(record + RECORD_WORDS, value, size)) return (int64_t)offset;
        }
        ruled_out = false;
    }
    *free_index = table->slot_count;
    return ~(int64_t)table->slot_count;
}

static int64_t find(const Engine *self, const uint64_t *words, uint64_t hash, const char *value, uint64_t size)
{
    uint64_t stripe = stripe_of(self, hash), limit, free_index;
    const uint64_t *state = words + self->stripes_word + stripe * STRIPE_WORDS + TABLE;
    /* A table that was replaced while it was probed may lack what was inserted since; it doubles each time. */
    for (int tries = 0; tries < 64; tries++) {
        Table table;
        if (!locate(self, words, stripe, &table)) return ODD;
        if (!table.slot_count) return -1;
        if (!read_limit(self, words, &limit)) return ODD;
        int64_t found = search(self, words, &table, limit, hash, value, size, &free_index);
        if (found >= 0 || load(state) == table.state) return found;
    }
    return ODD;
}

/* ---- an insert, for who holds the stripe's lock */

bool is_clear(const uint64_t *words, uint64_t size)
{
    for (uint64_t i = 0; i < size / 8; i++)
        if (load(words + i)) return false;
    return true;
}

/* As `_used_of` of stripe.py: beyond an honest word's owner and epoch there is nothing left but the bytes used. */
bool read_used(const Engine *self, const uint64_t *words, uint64_t chunk, uint64_t stripe, uint64_t *used)
{
    uint64_t owned = self->epoch << CHUNK_EPOCH_SHIFT | (stripe + 1), state = load(words + self->chunks_word + chunk);
    *used = (state - owned) >> CHUNK_USED_SHIFT;
    return state >= owned && !((state - owned) & CHUNK_OWNER_MASK) && *used % 8 == 0 && *used <= self->chunk_size;
}

/* The offset of the value's record; where one was inserted, ~offset. `place` of the chunk and its free bytes are what
 * `_end_of_records` of stripe.py reads, with the same checks. */
static int64_t insert(const Engine *self, uint64_t *words, uint64_t hash, const char *value, uint64_t size, bool may_insert)
{
    uint64_t stripe = stripe_of(self, hash), limit, index;
    uint64_t *row = words + self->stripes_word + stripe * STRIPE_WORDS;
    Table table;
    if (load(row + INTENT) || !locate(self, words, stripe, &table) || !table.slot_count || !read_limit(self, words, &limit))
        return ODD;
    int64_t found = search(self, words, &table, limit, hash, value, size, &index);
    if (found >= 0) return found;
    uint64_t count = load(row + COUNT), ceiling = table.slot_count * 3 / 4, chunk = load(row + CHUNK) - 1; /* none: all bits set */
    if (ceiling > self->stripe_capacity) ceiling = self->stripe_capacity;
    if (!may_insert || index == table.slot_count || count >= ceiling || chunk >= limit / self->chunk_size) return ODD;
    uint64_t used, *chunk_word = words + self->chunks_word + chunk, taken = (RECORD_SIZE + size + 7) & ~(uint64_t)7;
    if (!read_used(self, words, chunk, stripe, &used) || taken > self->chunk_size - used) return ODD;
    uint64_t offset = chunk * self->chunk_size + used, *record = words + self->arena_word + offset / 8;
    if (!is_clear(record, taken)) return ODD;
    store(row + INTENT, (uint64_t)INTENT_INSERT << INTENT_SHIFT | offset);
    __atomic_signal_fence(__ATOMIC_SEQ_CST); /* plain stores below stay below; all later words are stored with release */
    store(record, hash);
    if (size) {
        record[taken / 8 - 1] = 0; /* the padding */
        memcpy(record + RECORD_WORDS, value, size);
    }
    store(record + 1, META_LIVE | count << META_ORDINAL_SHIFT | size);
    store(words + table.word + index, make_slot(hash, offset)); /* commits */
    store(chunk_word, load(chunk_word) + (taken << CHUNK_USED_SHIFT));
    store(row + COUNT, count + 1);
    store(row + INTENT, 0);
    return ~(int64_t)offset;
}

/* ---- Python */

bool pin(Engine *self, Py_buffer *buffer)
{
    if (PyObject_GetBuffer(self->words, buffer, PyBUF_WRITABLE)) return false;
    if ((uint64_t)buffer->len / 8 >= self->segment_words && (uintptr_t)buffer->buf % 8 == 0) return true;
    PyBuffer_Release(buffer);
    PyErr_SetString(PyExc_ValueError, "the buffer is smaller than the segment, or starts between two words");
    return false;
}

static PyObject *Engine_hash(Engine *self, PyObject *object)
{
    char *value;
    uint64_t size;
    if (!read_value(object, &value, &size)) return NULL;
    return PyLong_FromUnsignedLongLong(siphash13(self->key, value, size));
}

static PyObject *Engine_find(Engine *self, PyObject *object)
{
    Py_buffer buffer;
    char *value;
    uint64_t size;
    if (!read_value(object, &value, &size) || !pin(self, &buffer)) return NULL;
    int64_t found = find(self, buffer.buf, siphash13(self->key, value, size), value, size);
    PyBuffer_Release(&buffer);
    if (found == ODD) return none();
    return PyLong_FromLongLong(found);
}

static PyObject *Engine_stripe(Engine *self, PyObject *object)
{
    char *value;
    uint64_t size;
    if (!read_value(object, &value, &size)) return NULL;
    return PyLong_FromUnsignedLongLong(stripe_of(self, siphash13(self->key, value, size)));
}

static PyObject *Engine_insert(Engine *self, PyObject *object)
{
    Py_buffer buffer;
    char *value;
    uint64_t size;
    if (!read_value(object, &value, &size) || !pin(self, &buffer)) return NULL;
    int64_t offset = insert(self, buffer.buf, siphash13(self->key, value, size), value, size, true);
    PyBuffer_Release(&buffer);
    if (offset == ODD) return none();
    return PyLong_FromLongLong(offset);
}

/* A tuple's hash and value, as stripe.py's items start with; the value is borrowed, and no Python code runs while it is used. */
static bool read_item(PyObject *items, Py_ssize_t place, uint64_t *hash, char **value, uint64_t *size)
{
    PyObject *item = PyList_GetItem(items, place), *number, *bytes;
    if (item && !PyTuple_Check(item)) PyErr_SetString(PyExc_TypeError, "items are tuples");
    if (!item || !PyTuple_Check(item) || !(number = PyTuple_GetItem(item, 0)) || !(bytes = PyTuple_GetItem(item, 1))) return false;
    return read_word(number, hash) && read_value(bytes, value, size);
}

static bool is_list(PyObject *items)
{
    if (!PyList_Check(items)) PyErr_SetString(PyExc_TypeError, "items come in a list");
    return PyList_Check(items);
}

static bool append(PyObject *list, int64_t number)
{
    PyObject *object = PyLong_FromLongLong(number);
    bool failed = !object || PyList_Append(list, object);
    Py_XDECREF(object);
    return !failed;
}

static PyObject *Engine_find_many(Engine *self, PyObject *items)
{
    Py_buffer buffer;
    char *value;
    uint64_t hash, size;
    if (!is_list(items)) return NULL;
    PyObject *found = PyList_New(0);
    if (!found || !pin(self, &buffer)) goto failed;
    for (Py_ssize_t i = 0; i < PyList_Size(items); i++) {
        int64_t offset = ODD;
        bool failing = !read_item(items, i, &hash, &value, &size);
        if (!failing) offset = find(self, buffer.buf, hash, value, size);
        if (failing || (offset != ODD && !append(found, offset))) {
            PyBuffer_Release(&buffer);
            goto failed;
        }
        if (offset == ODD) break;
    }
    PyBuffer_Release(&buffer);
    if (!PyErr_Occurred()) return found;
failed:
    Py_XDECREF(found);
    return NULL;
}

/* Every allocation happens before or after the stores of an insert, never in between; one that fails loses no insert, only
 * the knowledge of it, as an interrupt would. */
static PyObject *Engine_insert_many(Engine *self, PyObject *const *args, Py_ssize_t count)
{
    Py_buffer buffer;
    char *value;
    uint64_t hash, size;
    PyObject *offsets = PyList_New(0);
    if (count != 2) PyErr_SetString(PyExc_TypeError, "insert_many takes a list of items and how many of them may be inserted");
    if (count != 2 || !offsets || !is_list(args[0])) goto failed;
    long long room = PyLong_AsLongLong(args[1]);
    if (PyErr_Occurred() || !pin(self, &buffer)) goto failed;
    for (Py_ssize_t i = 0; i < PyList_Size(args[0]); i++) {
        if (!read_item(args[0], i, &hash, &value, &size)) break;
        int64_t offset = insert(self, buffer.buf, hash, value, size, room > 0);
        room -= offset < 0;
        if (offset == ODD || !append(offsets, offset)) break;
    }
    PyBuffer_Release(&buffer);
    if (!PyErr_Occurred()) return offsets;
failed:
    Py_XDECREF(offsets);
    return NULL;
}

static PyObject *Engine_start_epoch(Engine *self, PyObject *object)
{
    uint64_t epoch;
    if (!read_word(object, &epoch)) return NULL;
    self->epoch = epoch;
    memset(self->known, 0, sizeof self->known);
    return none();
}

static PyObject *Engine_know_table(Engine *self, PyObject *const *args, Py_ssize_t count)
{
    uint64_t stripe, state, epoch, place;
    if (count != 2) return PyErr_Format(PyExc_TypeError, "know_table takes a stripe and its table word");
    if (!read_word(args[0], &stripe) || !read_word(args[1], &state)) return NULL;
    if (stripe >> self->stripe_bits || !unseal(state, &epoch, &place) || epoch != self->epoch
        || (place & TABLE_BITS_MASK) < self->min_table_bits || (place & TABLE_BITS_MASK) > self->max_table_bits)
        return PyErr_Format(PyExc_ValueError, "no table of this pool");
    self->known[stripe] = state;
    return none();
}

/* Whether everything that is ever followed lies within the segment: `pin` then needs to know only its size. */
static bool is_layout(const Engine *self)
{
    const uint64_t most = (uint64_t)1 << 48; /* so that no sum or product below overflows */
    if (self->stripes_word > most || self->tables_word > most || self->chunks_word > most || self->arena_word > most) return false;
    if (self->stripe_tables_words > most || self->arena_size > LOW_40 || !self->chunk_size || self->chunk_size % 8) return false;
    if (self->stripe_bits > 8 /* known[] has 2**8 places */ || self->max_table_bits > 31 || self->min_table_bits > self->max_table_bits) return false;
    uint64_t stripes = (uint64_t)1 << self->stripe_bits;
    return self->arena_size % self->chunk_size == 0
           && self->stripe_tables_words >= 2 * (((uint64_t)2 << self->max_table_bits) - ((uint64_t)1 << self->min_table_bits))
           && self->stripes_word + stripes * STRIPE_WORDS <= self->segment_words
           && self->tables_word + stripes * self->stripe_tables_words <= self->segment_words
           && self->chunks_word + self->arena_size / self->chunk_size <= self->segment_words
           && ARENA_LIMIT_WORD < self->segment_words;
}

static PyObject *Engine_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"words", "key", "stripe_bits", "stripes_word", "tables_word", "stripe_tables_words", "min_table_bits",
                            "max_table_bits", "stripe_capacity", "chunks_word", "arena_word", "arena_size", "chunk_size", NULL};
    PyObject *words, *key_object;
    char *key;
    Py_ssize_t key_size;
    unsigned long long n[11];
    /* No format with a length: built by Python 3.13 and run by 3.11, one is refused for want of PY_SSIZE_T_CLEAN. */
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!OKKKKKKKKKKK", names, &PyMemoryView_Type, &words, &key_object, n, n + 1,
                                     n + 2, n + 3, n + 4, n + 5, n + 6, n + 7, n + 8, n + 9, n + 10)
        || PyBytes_AsStringAndSize(key_object, &key, &key_size))
        return NULL;
    if (key_size != 16) return PyErr_Format(PyExc_ValueError, "the hash key is 16 bytes, not %zd", key_size);
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Engine *self = (Engine *)allocate(type, 0);
    if (!self) return NULL;
    Py_INCREF(words);
    self->words = words;
    memcpy(self->key, key, sizeof self->key);
    self->stripe_bits = n[0];
    self->stripes_word = n[1];
    self->tables_word = n[2];
    self->stripe_tables_words = n[3];
    self->min_table_bits = n[4];
    self->max_table_bits = n[5];
    self->stripe_capacity = n[6];
    self->chunks_word = n[7];
    self->arena_word = n[8];
    self->arena_size = n[9];
    self->chunk_size = n[10];
    self->segment_words = self->arena_word + self->arena_size / 8;
    if (!is_layout(self)) {
        Py_DECREF(self);
        PyErr_SetString(PyExc_ValueError, "no segment is laid out like that");
        return NULL;
    }
    return (PyObject *)self;
}

static void Engine_dealloc(Engine *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    Py_CLEAR(self->words);
    release(self);
    Py_DECREF(type);
}

static PyMethodDef methods[] = {
    {"start_epoch", (PyCFunction)Engine_start_epoch, METH_O, "The pool's epoch; no table is known in it yet."},
    {"know_table", (PyCFunction)(void (*)(void))Engine_know_table, METH_FASTCALL, "A stripe and its table word, which is sound."},
    {"hash", (PyCFunction)Engine_hash, METH_O, "The hash of a value."},
    {"stripe", (PyCFunction)Engine_stripe, METH_O, "The stripe of a value."},
    {"find", (PyCFunction)Engine_find, METH_O, "What Stripes.find gives for a value; None where it is to be asked itself."},
    {"find_many", (PyCFunction)Engine_find_many, METH_O, "`find` for a list of hashes and values; shorter where one is None."},
    {"insert", (PyCFunction)Engine_insert, METH_O,
     "The offset of a value, found or, as ~offset, inserted, for who holds its stripe's lock; or None, and nothing is changed."},
    {"insert_many", (PyCFunction)(void (*)(void))Engine_insert_many, METH_FASTCALL,
     "`insert` for a list of items of one stripe and how many it may insert; shorter where one is None."},
    {NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_new, Engine_new},
    {Py_tp_dealloc, Engine_dealloc},
    {Py_tp_methods, methods},
    {Py_tp_doc, "Searches and inserts in the segment behind `words`."},
    {0},
};

static PyType_Spec spec = {"shmpool._engine.Engine", sizeof(Engine), 0, Py_TPFLAGS_DEFAULT, slots};

#define CODE(name) {#name, name}
static const struct { const char *name; uint64_t value; } codes[] = {
    CODE(TABLE), CODE(INTENT), CODE(COUNT), CODE(CHUNK), CODE(STRIPE_WORDS), CODE(ARENA_LIMIT_WORD), CODE(RECORD_SIZE),
    CODE(TAG_SHIFT), CODE(OCCUPIED), CODE(LOW_40), CODE(META_LIVE), CODE(META_ORDINAL_SHIFT), CODE(META_SIZE_MASK),
    CODE(INTENT_INSERT), CODE(INTENT_SHIFT), CODE(MAX_STRIPE_COUNT), CODE(CHUNK_EPOCH_SHIFT), CODE(CHUNK_USED_SHIFT), CODE(CHUNK_OWNER_MASK),
    CODE(SEAL_MODULUS), CODE(SEAL_SHIFT), CODE(SEAL_EPOCH_SHIFT), CODE(TABLE_BITS_MASK), CODE(TABLE_REGION_SHIFT),
    CODE(INTENT_REUSE), CODE(INTENT_SETTLE), CODE(TOMBSTONE), CODE(META_GENERATION_SHIFT), CODE(MAX_GENERATION),
    CODE(META_ORDINAL_MASK), CODE(GENERATION_SHIFT), CODE(SHELF_WORDS), CODE(SPACES), CODE(TOMBSTONES), CODE(UNHELD), CODE(RETIRED),
    CODE(FREE), CODE(PROCESS_WORDS), CODE(HOLDS), CODE(WORD_SIZE),
};

static int execute(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&spec), *dict = PyDict_New();
    int failed = !type || !dict || PyModule_AddObjectRef(module, "Engine", type) || PyModule_AddObjectRef(module, "CODES", dict)
                 || !add_reuse(module, type);
    for (size_t i = 0; !failed && i < sizeof codes / sizeof *codes; i++) {
        PyObject *value = PyLong_FromUnsignedLongLong(codes[i].value);
        failed = !value || PyDict_SetItemString(dict, codes[i].name, value);
        Py_XDECREF(value);
    }
    Py_XDECREF(type);
    Py_XDECREF(dict);
    return failed ? -1 : 0;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, execute}, {0}};

static PyModuleDef module = {PyModuleDef_HEAD_INIT, "shmpool._engine", NULL, 0, NULL, module_slots};

PyMODINIT_FUNC PyInit__engine(void) { return PyModuleDef_Init(&module); }
