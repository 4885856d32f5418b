import { reportFailure, SettingsError } from '../lib/errors.ts'
import { createLog, logDestination } from '../lib/log.ts'
import { version } from '../lib/version.ts'
import { stopSignal, workForever } from '../lib/worker.ts'
import { readConfig } from './config.ts'
import { closeNotifier, connect, openNotifier, type Notifier } from './context.ts'
import { finish, sendDue } from './outbox.ts'

const USAGE = `usage: npm run notifier [-- --once]
  sends the messages of webhooks as they come
  --once  sends what is due, then exits: 0 if everything was accepted, 1 if something was not`

/** Ingest notifies nobody, so a device that is back is found by looking. */
const POLL_MS = 2000

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
  const log = createLog('notifier', config.logLevel, await logDestination(config.logFormat))
  const signal = stopSignal('notifier', log)
  const notifier = openNotifier(config, log)
  try {
    return args.includes('--once') ? await runOnce(notifier, signal) : await runForever(notifier, signal)
  } catch (error) {
    log.fatal({ event: 'notifier.failed', error }, 'the notifier ended')
    return 1
  } finally {
    await finish(notifier)
    await closeNotifier(notifier)
    log.info({ event: 'notifier.stopped' }, 'stopped')
  }
}

async function runOnce(notifier: Notifier, signal: AbortSignal) {
  await beat(notifier)
  ready(notifier)
  while (!signal.aborted) {
    const result = await sendDue(notifier, () => {})
    if (result === 'done') continue
    if (notifier.inFlight.size === 0) break
    // What follows a message is due when that is sent.
    await Promise.race(notifier.inFlight)
  }
  return notifier.failures > 0 ? 1 : 0
}

async function runForever(notifier: Notifier, signal: AbortSignal) {
  const { database, name: worker, log } = notifier
  await workForever({
    service: 'notifier',
    worker,
    channel: 'fleet_notifier',
    connect: () => connect(database, 'fleet-notifier listen'),
    beat: () => beat(notifier),
    onReady: () => ready(notifier),
    workOnce: wake => sendDue(notifier, wake),
    pauseMs: POLL_MS,
    signal,
    log,
  })
  return 0
}

function beat({ sql, name }: Notifier) {
  return sql`select fleet.notifier_heartbeat(${name}, ${version})`
}

function ready({ log, name }: Notifier) {
  log.info({ event: 'notifier.ready', worker: name, version }, 'ready')
  process.send?.({ event: 'notifier.ready' })
}
