#include "pool.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#if defined(__x86_64__) || defined(__i386__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ volatile("yield")
#else
#define PAUSE() ((void)0)
#endif

/* about 20 to 100 microseconds: more than a phase's imbalance, less than a scheduler's tick */
enum { SPINS = 2000 };

/* A counter, and threads that wait until it changes. */
typedef struct {
    atomic_uint value;
    atomic_int sleepers;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
} signal_t;

struct lutra_pool {
    int threads, started;
    _Alignas(64) signal_t start;
    _Alignas(64) signal_t passed;
    _Alignas(64) atomic_int arrived;
    _Alignas(64) atomic_int next;
    atomic_int stop;
    lutra_job job;
    void *argument;
    pthread_t *ids;
    struct seat {
        lutra_pool *pool;
        int thread;
    } *seats;
};

static void signal_init(signal_t *s) {
    atomic_init(&s->value, 0);
    atomic_init(&s->sleepers, 0);
    pthread_mutex_init(&s->mutex, NULL);
    pthread_cond_init(&s->changed, NULL);
}

static void signal_raise(signal_t *s) {
    atomic_fetch_add(&s->value, 1);
    if (atomic_load(&s->sleepers)) {
        pthread_mutex_lock(&s->mutex);
        pthread_cond_broadcast(&s->changed);
        pthread_mutex_unlock(&s->mutex);
    }
}

static void signal_wait(signal_t *s, unsigned old) {
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(&s->value, memory_order_acquire) != old) return;
        PAUSE();
    }
    pthread_mutex_lock(&s->mutex);
    /* any later signal_raise() sees sleepers > 0 and blocks on the mutex until we wait */
    atomic_fetch_add(&s->sleepers, 1);
    while (atomic_load(&s->value) == old) pthread_cond_wait(&s->changed, &s->mutex);
    atomic_fetch_sub(&s->sleepers, 1);
    pthread_mutex_unlock(&s->mutex);
}

static void *work(void *argument) {
    struct seat *seat = argument;
    lutra_pool *pool = seat->pool;
    unsigned seen = 0;
    for (;;) {
        signal_wait(&pool->start, seen);
        seen++;
        if (atomic_load(&pool->stop)) return NULL;
        pool->job(pool->argument, seat->thread);
        pool_barrier(pool);
    }
}

lutra_pool *lutra_cpu_pool_new(int threads) {
    lutra_pool *pool = aligned_alloc(64, (sizeof *pool + 63) / 64 * 64);
    if (!pool) return NULL;
    pool->threads = threads < 1 ? 1 : threads;
    pool->started = 0;
    signal_init(&pool->start);
    signal_init(&pool->passed);
    atomic_init(&pool->arrived, 0);
    atomic_init(&pool->next, 0);
    atomic_init(&pool->stop, 0);
    pool->ids = calloc((size_t)pool->threads, sizeof *pool->ids);
    pool->seats = calloc((size_t)pool->threads, sizeof *pool->seats);
    int ok = pool->ids && pool->seats;
    for (int i = 1; ok && i < pool->threads; i++) {
        pool->seats[i].pool = pool;
        pool->seats[i].thread = i;
        ok = pthread_create(&pool->ids[i], NULL, work, &pool->seats[i]) == 0;
        pool->started += ok;
    }
    if (ok) return pool;
    lutra_cpu_pool_free(pool);
    return NULL;
}

void lutra_cpu_pool_free(lutra_pool *pool) {
    if (!pool) return;
    atomic_store(&pool->stop, 1);
    signal_raise(&pool->start);
    for (int i = 1; i <= pool->started; i++) pthread_join(pool->ids[i], NULL);
    free(pool->ids);
    free(pool->seats);
    free(pool);
}

int pool_threads(const lutra_pool *pool) { return pool->threads; }

void pool_run(lutra_pool *pool, lutra_job job, void *argument) {
    pool->job = job;
    pool->argument = argument;
    atomic_store(&pool->next, 0);
    if (pool->threads > 1) signal_raise(&pool->start);
    job(argument, 0);
    pool_barrier(pool);
}

void pool_barrier(lutra_pool *pool) {
    if (pool->threads == 1) {
        atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
        return;
    }
    unsigned old = atomic_load(&pool->passed.value);
    if (atomic_fetch_add(&pool->arrived, 1) == pool->threads - 1) {
        atomic_store(&pool->arrived, 0);
        atomic_store(&pool->next, 0);
        signal_raise(&pool->passed);
    } else {
        signal_wait(&pool->passed, old);
    }
}

int pool_next(lutra_pool *pool) {
    return atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
}

struct lutra_meeting {
    int parties;
    _Alignas(64) signal_t passed;
    _Alignas(64) atomic_int arrived;
    atomic_int left;
};

lutra_meeting *lutra_cpu_meeting_new(int parties) {
    lutra_meeting *m = aligned_alloc(64, (sizeof *m + 63) / 64 * 64);
    if (!m) return NULL;
    m->parties = parties;
    signal_init(&m->passed);
    atomic_init(&m->arrived, 0);
    atomic_init(&m->left, 0);
    return m;
}

void lutra_cpu_meeting_free(lutra_meeting *meeting) { free(meeting); }

int32_t lutra_cpu_meet(void *meeting) {
    lutra_meeting *m = meeting;
    unsigned old = atomic_load(&m->passed.value);
    if (atomic_load(&m->left)) return 0;
    if (atomic_fetch_add(&m->arrived, 1) == m->parties - 1) {
        atomic_store(&m->arrived, 0);
        signal_raise(&m->passed);
    } else {
        signal_wait(&m->passed, old);
    }
    return !atomic_load(&m->left);
}

void lutra_cpu_meeting_leave(lutra_meeting *meeting) {
    atomic_store(&meeting->left, 1);
    signal_raise(&meeting->passed);
}
