import { setTimeout as sleep } from 'node:timers/promises'
import { reportFailure, SettingsError } from '../lib/errors.ts'
import { readConfig } from './config.ts'
import { openListener } from './listener.ts'
import { logDestination } from '../lib/log.ts'
import { startTracing } from '../lib/tracing.ts'
import { version } from '../lib/version.ts'
import { createLog, type Log } from '../lib/log.ts'
import { closeWorker, openWorker, type Worker } from './context.ts'
import { refreshIndex, workOnce } from './worker.ts'

const USAGE = `usage: npm run archiver [-- --once]
  archives partitions past their retention, and restores those that were requested, as they come
  --once  works until nothing is left to do, then exits: 0 if everything succeeded, 1 if something failed`

const SWEEP_MS = 60_000
const HEARTBEAT_MS = 15_000

process.exit(await main(process.argv.slice(2)))

async function main(args: string[]): Promise<number> {
  if (args.some(arg => arg !== '--once')) {
    console.error(USAGE)
    return 2
  }
  let config
  try {
    config = readConfig()
  } catch (error) {
    if (!(error instanceof SettingsError)) throw error
    return reportFailure(error)
  }

  const log = createLog('archiver', config.logLevel, await logDestination(config.logFormat))
  const stopping = new AbortController()
  const stop = (why: string) => {
    if (stopping.signal.aborted) return
    log.info({ event: 'archiver.stopping' }, why)
    stopping.abort(new Error('the archiver was told to stop'))
  }
  for (const signal of ['SIGTERM', 'SIGINT'] as const) process.on(signal, () => stop(signal))
  // If another process of this project started it, it stops when that one dies.
  process.on('disconnect', () => stop('the parent process ended'))
  process.channel?.unref()

  const tracing = await startTracing(config.otlpEndpoint, 'nexmdm-archiver', log)
  const worker = await openWorker(config, log, tracing)
  try {
    return args.includes('--once') ? await runOnce(worker, stopping.signal) : await runForever(worker, stopping.signal, log)
  } catch (error) {
    log.fatal({ event: 'archiver.failed', error }, 'the archiver ended')
    return 1
  } finally {
    await closeWorker(worker)
    await tracing?.stop()
    log.info({ event: 'archiver.stopped' }, 'stopped')
  }
}

async function runOnce(worker: Worker, signal: AbortSignal) {
  await worker.sql`select fleet.archiver_heartbeat(${worker.name}, ${version})`
  ready(worker)
  let failures = 0
  for (let result; !signal.aborted && result !== 'idle';) {
    result = await workOnce(worker, signal)
    if (result === 'failed') failures++
  }
  await refreshIndex(worker, signal)
  return failures > 0 ? 1 : 0
}

async function runForever(worker: Worker, signal: AbortSignal, log: Log) {
  const wake = { isPending: false, now: () => {} }
  const listener = openListener(
    worker.database,
    worker.name,
    () => {
      wake.isPending = true
      wake.now()
    },
    log,
  )
  const beat = () =>
    worker.sql`select fleet.archiver_heartbeat(${worker.name}, ${version})`.then(
      () => {},
      (error: unknown) =>
        log.warn({ event: 'archiver.heartbeat.failed', error }, 'the database was not told that this archiver runs'),
    )
  const timers = [setInterval(() => void beat(), HEARTBEAT_MS), setInterval(() => void listener.check(), HEARTBEAT_MS)]
  try {
    await worker.sql`select fleet.archiver_heartbeat(${worker.name}, ${version})`
    await listener.listen()
    // index.json may be outdated if the last run was killed.
    worker.indexIsStale = true
    ready(worker)
    while (!signal.aborted) {
      wake.isPending = false
      let result
      try {
        result = await workOnce(worker, signal)
      } catch (error) {
        log.error({ event: 'archiver.database.unavailable', error }, 'the database could not be asked for work; trying again')
        await sleep(5000, undefined, { signal }).catch(() => {})
        continue
      }
      if (result !== 'idle') continue
      await refreshIndex(worker, signal)
      if (wake.isPending) continue
      const pause = new AbortController()
      wake.now = () => pause.abort()
      await sleep(SWEEP_MS, undefined, { signal: AbortSignal.any([signal, pause.signal]) }).catch(() => {})
    }
    return 0
  } finally {
    timers.forEach(clearInterval)
    await listener.close()
  }
}

function ready({ log, name, store }: Worker) {
  log.info({ event: 'archiver.ready', worker: name, version, archive_url: store.url }, 'ready')
  process.send?.({ event: 'archiver.ready' })
}
