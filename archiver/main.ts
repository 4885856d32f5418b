import { reportFailure, SettingsError } from '../lib/errors.ts'
import { readConfig } from './config.ts'
import { connect } from './database.ts'
import { logDestination } from '../lib/log.ts'
import { startTracing } from '../lib/tracing.ts'
import { version } from '../lib/version.ts'
import { stopSignal, workForever } from '../lib/worker.ts'
import { createLog, type Log } from '../lib/log.ts'
import { closeWorker, openWorker, type Worker } from './context.ts'
import { refreshIndex, workOnce } from './worker.ts'

const USAGE = `usage: npm run archiver [-- --once]
  archives partitions past their retention, and restores those that were requested, as they come
  --once  works until nothing is left to do, then exits: 0 if everything succeeded, 1 if something failed`

const SWEEP_MS = 60_000

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
  const signal = stopSignal('archiver', log)
  const tracing = await startTracing(config.otlpEndpoint, 'nexmdm-archiver', log)
  const worker = await openWorker(config, log, tracing)
  try {
    return args.includes('--once') ? await runOnce(worker, signal) : await runForever(worker, signal, log)
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
  await workForever({
    service: 'archiver',
    worker: worker.name,
    channel: 'fleet_archiver',
    connect: () => connect(worker.database, { max: 1, application_name: 'fleet-archiver listen' }),
    beat: () => worker.sql`select fleet.archiver_heartbeat(${worker.name}, ${version})`,
    onReady: () => {
      // index.json may be outdated if the last run was killed.
      worker.indexIsStale = true
      ready(worker)
    },
    workOnce: () => workOnce(worker, signal),
    onIdle: () => refreshIndex(worker, signal),
    pauseMs: SWEEP_MS,
    signal,
    log,
  })
  return 0
}

function ready({ log, name, store }: Worker) {
  log.info({ event: 'archiver.ready', worker: name, version, archive_url: store.url }, 'ready')
  process.send?.({ event: 'archiver.ready' })
}
