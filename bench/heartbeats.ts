import { fork } from 'node:child_process'
import { join } from 'node:path'
import { repository } from '../local/config.ts'
import { say } from '../lib/progress.ts'
import type { Order, Report, Sent, Template } from './sender.ts'
import type { Schedule } from './schedule.ts'

/** The sending process, seen from here. One order at a time, but acknowledged() and stop() during open(). */
export type Sender = ReturnType<typeof startSender>

export function startSender() {
  const child = fork(join(repository, 'bench/sender.ts'), { execArgv: ['--import', 'tsx'], serialization: 'advanced' })
  const ended = new Promise<never>((_, reject) => {
    child.once('error', reject)
    child.once('exit', code => reject(new Error(`the sending process ended with ${code ?? 'a signal'}`)))
  })
  ended.catch(() => {})

  function order<K extends Report['kind']>(what: Order, answer: K, progress: (seconds: number, sent: Sent) => void = () => {}) {
    const done = new Promise<Extract<Report, { kind: K }>>(resolve => {
      const listen = (report: Report) => {
        if (report.kind === 'progress') progress(report.seconds, report.sent)
        if (report.kind !== answer) return
        child.off('message', listen)
        resolve(report as Extract<Report, { kind: K }>)
      }
      child.on('message', listen)
    })
    child.send(what)
    return Promise.race([done, ended])
  }
  const sent = async (what: Order, progress?: (seconds: number, sent: Sent) => void) => (await order(what, 'done', progress)).sent

  return {
    /** The server to send to, and what; replaces what was there before. */
    connect: (port: number, connections: number, templates: Template[]) =>
      order({ kind: 'connect', port, connections, templates }, 'ready'),
    /** Follows the schedule to its end, or until stop(). */
    open: (schedule: Schedule, warmup: number, progress?: (seconds: number, sent: Sent) => void, records = false) =>
      sent({ kind: 'open', schedule, warmup, records }, progress),
    /** Saturates the server. */
    closed: (seconds: number, warmup: number, from: number) => sent({ kind: 'closed', seconds, warmup, from }),
    /** What was answered with 2xx since the last time, if open() records it; any time. */
    acknowledged: async () => (await order({ kind: 'acknowledged' }, 'acknowledged')).beats,
    /** Ends open() early; what was sent is still waited for. */
    stop: () => child.send({ kind: 'stop' } satisfies Order),
    end() {
      if (child.connected) child.disconnect()
    },
  }
}

/** Says every ten seconds how it goes. */
export function tellProgress(duration: number) {
  let told = 0
  return (seconds: number, { ok, errors, latency }: Sent) => {
    if (seconds < told + 10) return
    told = seconds
    say(
      `  ${Math.round(seconds)} s of ${duration} s: ${ok.toLocaleString('en')} answered, ${errors} errors, p99 ${latency.p99.toFixed(1)} ms`,
    )
  }
}
