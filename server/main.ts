import cluster from 'node:cluster'
import { readConfig, type ServerConfig } from './config.ts'
import { createLog, logDestination } from '../lib/log.ts'
import { startWorkers, WorkerFailed } from './workers.ts'
import { reportFailure, SettingsError } from '../lib/errors.ts'

const config = configOrExit()
const log = createLog('server', config.logLevel, await logDestination(config.logFormat), [config.adminKey])
// Otherwise node ends a worker at once, in the middle of its requests, when the first process is gone.
if (cluster.worker) cluster.worker.exitedAfterDisconnect = true

const started = config.workers > 1 && cluster.isPrimary ? startWorkers(config.workers, log, giveUp) : serve()

let stopping = false
let isServing = false
process.on('SIGTERM', drain)
process.on('SIGINT', drain)
// The process that started this one with an IPC channel is gone.
if (process.channel) process.on('disconnect', () => drain('disconnect'))

try {
  const { port } = await started
  isServing = true
  if (!cluster.isWorker)
    log.info({ event: 'server.listening', host: config.host, port, workers: config.workers, tls: config.tls !== undefined })
} catch (error) {
  if (error instanceof WorkerFailed) process.exit(error.code)
  const { code } = error as NodeJS.ErrnoException
  const why =
    code === 'EADDRINUSE'
      ? `Port ${config.port} on ${config.host} is already in use; set PORT to a free port.`
      : `The server could not open port ${config.port} on ${config.host}.`
  log.fatal({ event: 'server.start_failed', error }, why)
  process.stderr.write(`${why}\n`)
  process.exit(1)
}

/** Only a process that serves imports the server. The process that hands out connections starts sooner and stays smaller. */
async function serve() {
  const { startServer } = await import('./server.ts')
  return startServer(config, log)
}

function drain(reason: string) {
  if (stopping) return
  stopping = true
  log.info({ event: 'server.stopping', reason })
  // Only the first process can give a worker the port. Nothing was accepted yet, so there is nothing to finish.
  if (reason === 'disconnect' && cluster.isWorker && !isServing) process.exit(1)
  void started.then(({ stop }) => stop()).then(inTime => process.exit(inTime ? 0 : 1))
}

function giveUp(why: string) {
  log.fatal({ event: 'server.given_up' }, why)
  process.stderr.write(`${why} The server gives up.\n`)
  process.exit(1)
}

function configOrExit(): ServerConfig {
  try {
    return readConfig()
  } catch (error) {
    if (!(error instanceof SettingsError)) throw error
    process.exit(reportFailure(error))
  }
}
