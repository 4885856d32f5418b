// A child process of npm start: the server, the archiver or the notifier. It is started, watched, restarted when it dies, and stopped.
import { spawn, type ChildProcess } from 'node:child_process'
import { closeSync, openSync } from 'node:fs'
import { copyFile, open, readFile, stat, truncate } from 'node:fs/promises'
import { nodeArgs, repository } from '../lib/repository.ts'
import { hasEnded } from '../lib/process.ts'
import { say } from '../lib/progress.ts'

const EXIT_WRONG_SETTINGS = 2
const MAX_LOG_BYTES = 20 * 2 ** 20
const MAX_LINES_SHOWN = 5

export interface ServiceOptions {
  name: string
  /** Its file, relative to the repository's root. */
  script: string
  env: Record<string, string | undefined>
  /** The file for its output. */
  log: string
  /** Called when it cannot continue: its settings are wrong, or it has died several times before it was ready. */
  onFailure: (error: Error) => void
}

export class Service {
  readonly name: string
  #options: ServiceOptions
  #child: ChildProcess | undefined
  #stopping = false
  #deaths = 0
  #retry: NodeJS.Timeout | undefined
  #follower: NodeJS.Timeout | undefined
  #seen = 0
  #from = 0
  /** Set by the caller when the service works. From then on it is always restarted. */
  isReady = false

  constructor(options: ServiceOptions) {
    this.name = options.name
    this.#options = options
  }

  async start() {
    this.#seen = this.#from = await size(this.#options.log)
    this.#spawn()
    this.#follower = setInterval(() => void this.#follow(), 1000)
  }

  /** Asks it to finish (SIGTERM) and waits. After `timeoutMs` it is killed. */
  async stop(timeoutMs = 30_000) {
    this.#stopping = true
    clearTimeout(this.#retry)
    clearInterval(this.#follower)
    const child = this.#child
    if (!child || hasEnded(child)) return
    const ended = new Promise(resolve => child.once('exit', resolve))
    child.kill('SIGTERM')
    const timer = setTimeout(() => {
      say(`The ${this.name} did not finish in ${timeoutMs / 1000} s and is killed.`)
      child.kill('SIGKILL')
    }, timeoutMs)
    await ended
    clearTimeout(timer)
  }

  /** Kills it at once. */
  kill() {
    this.#stopping = true
    clearTimeout(this.#retry)
    this.#child?.kill('SIGKILL')
  }

  /** The last lines that it has logged since start(). */
  async logTail(lines = 15) {
    const log = await readFile(this.#options.log).catch(() => Buffer.alloc(0))
    return log.subarray(this.#from).toString().trimEnd().split('\n').slice(-lines).join('\n')
  }

  #spawn() {
    const { script, env, log } = this.#options
    // Output goes to a file and not to a pipe, so that the child can still write its last lines after this process was killed. It
    // notices that because the IPC channel closes. It has a process group of its own, so that Ctrl-C reaches only us and we
    // decide in which order to stop.
    const out = openSync(log, 'a', 0o600)
    const child = spawn(process.execPath, nodeArgs(script), {
      cwd: repository,
      env,
      detached: true,
      stdio: ['ignore', out, out, 'ipc'],
    })
    closeSync(out)
    this.#child = child
    const started = Date.now()
    child.once('error', error => this.#options.onFailure(error))
    child.once('exit', (code, signal) => {
      if (!this.#stopping) void this.#died(code, signal, Date.now() - started)
    })
  }

  async #died(code: number | null, signal: string | null, lived: number) {
    this.#deaths = lived > 60_000 ? 1 : this.#deaths + 1
    const how = `The ${this.name} ended unexpectedly (${signal ?? `code ${code}`})`
    const tail = `The end of ${this.#options.log}:\n${await this.logTail()}`
    if (code === EXIT_WRONG_SETTINGS || (!this.isReady && this.#deaths >= 3)) {
      this.#options.onFailure(new Error(`${how}. ${tail}`))
      return
    }
    const pause = Math.min(2 ** (this.#deaths - 1), 30)
    say(`${how} and restarts in ${pause} s. ${tail}`)
    this.#retry = setTimeout(() => this.#spawn(), pause * 1000)
  }

  /** Shows warnings and errors from its log, and limits the size of the log. */
  async #follow() {
    const { log } = this.#options
    const end = await size(log)
    if (end < this.#seen) this.#seen = 0
    if (end > this.#seen) {
      const file = await open(log)
      const buffer = Buffer.alloc(Math.min(end - this.#seen, 2 ** 20))
      await file.read(buffer, 0, buffer.length, end - buffer.length)
      await file.close()
      this.#seen = end
      const grave = buffer
        .toString()
        .split('\n')
        .map(graveLine)
        .filter(line => line !== undefined)
      // Before the service is ready, failures to connect are normal.
      if (!this.isReady) grave.length = 0
      for (const line of grave.slice(0, MAX_LINES_SHOWN)) say(`${this.name}: ${line}`)
      if (grave.length > MAX_LINES_SHOWN) say(`${this.name}: ${grave.length - MAX_LINES_SHOWN} more in ${log}`)
    }
    if (end > MAX_LOG_BYTES) {
      await copyFile(log, `${log}.1`)
      await truncate(log)
      this.#from = 0
    }
  }
}

/** An error as lib/log.ts writes it. */
interface LoggedError {
  message: string
  cause?: LoggedError
}

/** The text of a log line (a JSON object written by pino) that is a warning or worse; undefined for any other line. */
export function graveLine(line: string): string | undefined {
  try {
    const { level, event, message, error } = JSON.parse(line) as {
      level?: number | string
      event?: string
      message?: string
      error?: LoggedError
    }
    const isGrave = typeof level === 'number' ? level >= 40 : ['warn', 'error', 'fatal'].includes(level ?? '')
    if (!isGrave) return undefined
    return [event, error ? message?.replace(/\.$/, '') : message, ...messagesOf(error)].filter(Boolean).join(': ')
  } catch {
    return undefined // not a log line; the text of a crash is shown when the process ends
  }
}

function messagesOf(error: LoggedError | undefined): string[] {
  return error === undefined ? [] : [error.message, ...messagesOf(error.cause)]
}

function size(file: string) {
  return stat(file).then(
    found => found.size,
    () => 0,
  )
}
