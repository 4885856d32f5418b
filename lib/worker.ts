// What the archiver and the notifier share: processes that wait for work in the database, and may be several.
import { randomBytes } from 'node:crypto'
import { hostname } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import { openListener, type ListeningClient } from './listener.ts'
import type { Log } from './log.ts'

const HEARTBEAT_MS = 15_000
const RETRY_MS = 5000

/** Names a process in leases: host, pid and a random part, so that no two processes ever share one. */
export function workerName() {
  return `${hostname()}:${process.pid}:${randomBytes(3).toString('hex')}`
}

/** Aborted when the process is told to stop, or when the process of this project that started it dies. */
export function stopSignal(service: string, log: Log) {
  const stopping = new AbortController()
  const stop = (why: string) => {
    if (stopping.signal.aborted) return
    log.info({ event: `${service}.stopping` }, why)
    stopping.abort(new Error(`the ${service} was told to stop`))
  }
  for (const signal of ['SIGTERM', 'SIGINT'] as const) process.on(signal, () => stop(signal))
  process.on('disconnect', () => stop('the parent process ended'))
  process.channel?.unref()
  return stopping.signal
}

export interface Work {
  /** The program, whose name begins the names of the events in the log. */
  service: string
  /** The name of this process. */
  worker: string
  /** Where the database notifies of work. */
  channel: string
  /** Opens the connection that listens. */
  connect: () => ListeningClient
  /** Tells the database that this process is alive. */
  beat: () => PromiseLike<unknown>
  /** Called when the process listens, before it works. */
  onReady: () => void
  /**
   * Does one piece of work; `wake` makes the next call come at once.
   * @returns idle if there was nothing to do
   * @throws if the database cannot be asked for work
   */
  workOnce: (wake: () => void) => Promise<string>
  /** Called when there is nothing to do. */
  onIdle?: () => Promise<void>
  /** After which time it looks for work although nobody woke it. */
  pauseMs: number
  signal: AbortSignal
  log: Log
}

/** Works whenever there is work, until `signal` fires. A failure of the database while it runs is logged and survived. */
export async function workForever({ service, worker, channel, connect, beat, signal, log, ...work }: Work) {
  const wake = { isPending: false, now: () => {} }
  const onWake = () => {
    wake.isPending = true
    wake.now()
  }
  const listener = openListener({ service, channel, worker, connect, onWake, log })
  const tryBeat = async () => {
    try {
      await beat()
    } catch (error) {
      log.warn({ event: `${service}.heartbeat.failed`, error }, `the database was not told that this ${service} runs`)
    }
  }
  const timers = [setInterval(() => void tryBeat(), HEARTBEAT_MS), setInterval(() => void listener.check(), HEARTBEAT_MS)]
  try {
    await beat()
    await listener.listen()
    work.onReady()
    while (!signal.aborted) {
      wake.isPending = false
      let result
      try {
        result = await work.workOnce(onWake)
      } catch (error) {
        log.error({ event: `${service}.database.unavailable`, error }, 'the database could not be asked for work; trying again')
        await sleep(RETRY_MS, undefined, { signal }).catch(() => {})
        continue
      }
      if (result !== 'idle') continue
      await work.onIdle?.()
      if (wake.isPending) continue
      const pause = new AbortController()
      wake.now = () => pause.abort()
      await sleep(work.pauseMs, undefined, { signal: AbortSignal.any([signal, pause.signal]) }).catch(() => {})
    }
  } finally {
    timers.forEach(clearInterval)
    await listener.close()
  }
}
