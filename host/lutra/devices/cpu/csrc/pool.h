/* Threads that wait briefly by spinning and longer by sleeping. */
#ifndef LUTRA_POOL_H
#define LUTRA_POOL_H

#include "lutra_cpu.h"

typedef void (*lutra_job)(void *argument, int thread);

int pool_threads(const lutra_pool *pool);
/* Every thread runs the job, the caller as thread 0; returns when all have. */
void pool_run(lutra_pool *pool, lutra_job job, void *argument);
/* Within a job: wait for all threads; pool_next then counts from zero again. */
void pool_barrier(lutra_pool *pool);
/* Within a job: the next item of work that no thread has taken since the last barrier. */
int pool_next(lutra_pool *pool);

#endif
