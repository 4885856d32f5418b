import cluster, { type Worker } from 'node:cluster'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Log } from '../lib/log.ts'
import { answerScrapes } from './ops/scrape.ts'

/** A worker that ends sooner than this after it opened the port did not survive its start. */
const YOUNG_MS = 1_000
const MAX_PAUSE_MS = 5_000
/** If this many workers in a row did not survive their start, and none serves, another try would not help. */
const GIVE_UP = 5
/** Longer than the 20 s that a worker gives its requests to finish, shorter than the 30 s that a service manager waits. */
const KILL_MS = 25_000

/** The first worker ended before it opened the port. It has reported the reason itself. */
export class WorkerFailed extends Error {
  constructor(readonly code: number) {
    super(`the first worker ended with code ${code} before it opened the port`)
    this.name = 'WorkerFailed'
  }
}

/**
 * Runs `count` processes of this program that share the port. This process accepts the connections, hands them out and replaces
 * workers that die. It reads nothing from the connections, so there is little that could end it.
 * @param giveUp called once, when no worker survives its start any more
 * @throws WorkerFailed if the first worker cannot open the port
 */
export async function startWorkers(count: number, log: Log, giveUp: (why: string) => void) {
  const serving = new Map<Worker, number>()
  const stopping = new AbortController()
  let failures = 0
  answerScrapes()

  function fork() {
    const worker = cluster.fork()
    const about = { worker: worker.process.pid }
    worker.on('error', error => log.error({ event: 'worker.error', ...about, error }))
    worker.once('listening', () => {
      serving.set(worker, performance.now())
      log.info({ event: 'worker.started', ...about })
    })
    worker.once('exit', (code, signal) => {
      const wasYoung = performance.now() - (serving.get(worker) ?? Infinity) < YOUNG_MS
      serving.delete(worker)
      if (stopping.signal.aborted) return
      failures = wasYoung ? failures + 1 : 0
      log.error({ event: 'worker.exited', ...about, code, signal, failures })
    })
    return worker
  }

  function replaceWhenDead(worker: Worker) {
    worker.once(
      'exit',
      (code, signal) =>
        void (async () => {
          if (failures >= GIVE_UP && serving.size === 0 && !stopping.signal.aborted) {
            stopping.abort()
            giveUp(`${failures} workers in a row ended during startup, the last one with ${signal || `code ${code}`}.`)
          }
          const pause = failures === 0 ? 0 : Math.min(50 * 2 ** failures, MAX_PAUSE_MS)
          await sleep(pause, undefined, stopping).catch(() => {})
          if (!stopping.signal.aborted) replaceWhenDead(fork())
        })(),
    )
  }

  /**
   * Lets all workers finish their requests.
   * @returns false if one of them had to cut requests off, or had to be killed
   */
  async function stop() {
    stopping.abort()
    const living = Object.values(cluster.workers ?? {})
      .filter(worker => worker !== undefined)
      .filter(worker => !worker.isDead())
    const ends = await Promise.all(
      living.map(async worker => {
        // A worker that does not serve yet has nothing to finish, and may not know the signal yet.
        const isServing = serving.has(worker)
        const exited = once(worker, 'exit') as Promise<[number | null]>
        worker.process.kill('SIGTERM')
        const limit = setTimeout(() => worker.process.kill('SIGKILL'), KILL_MS)
        const [code] = await exited
        clearTimeout(limit)
        return code === 0 || !isServing
      }),
    )
    return ends.every(inTime => inTime)
  }

  // Start the first one alone, so that a port in use is reported once.
  const first = fork()
  const exited = once(first, 'exit').then(([code]) => {
    throw new WorkerFailed(typeof code === 'number' && code > 0 ? code : 1)
  })
  const [{ port }] = (await Promise.race([once(first, 'listening'), exited])) as [{ port: number }]
  replaceWhenDead(first)
  for (let n = 1; n < count; n++) replaceWhenDead(fork())
  return { port, stop }
}
