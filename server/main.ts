import { ConfigError, readConfig, type ServerConfig } from './config.ts'
import { createLog } from './log.ts'
import { startServer } from './server.ts'

const config = configOrExit()
const log = createLog(config.logLevel)

try {
  const { stop } = await startServer(config, log)
  let stopping = false
  const drain = (reason: string) => {
    if (stopping) return
    stopping = true
    log.info({ event: 'server.stopping', reason })
    void stop().then(inTime => process.exit(inTime ? 0 : 1))
  }
  process.on('SIGTERM', drain)
  process.on('SIGINT', drain)
  // Whoever started this process with an IPC channel is gone.
  if (process.channel) process.on('disconnect', () => drain('disconnect'))
} catch (error) {
  const { code } = error as NodeJS.ErrnoException
  const why = code === 'EADDRINUSE'
    ? `Port ${config.port} of ${config.host} is taken by another process; set PORT to a free one.`
    : `The server could not open port ${config.port} of ${config.host}.`
  log.fatal({ event: 'server.start_failed', error }, why)
  process.stderr.write(`${why}\n`)
  process.exitCode = 1
}

function configOrExit(): ServerConfig {
  try {
    return readConfig()
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error
    process.stderr.write(`${error.message}\n`)
    process.exit(2)
  }
}
