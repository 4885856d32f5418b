import { fork } from 'node:child_process'
import { join } from 'node:path'
import { repository } from '../local/config.ts'
import { say } from '../local/progress.ts'
import type { Order, Report, Sent, Template } from './sender.ts'
import type { Schedule } from './schedule.ts'

/** The sending process, seen from here. One order at a time. */
export type Sender = ReturnType<typeof startSender>

export function startSender() {
  const child = fork(join(repository, 'bench/sender.ts'), { execArgv: ['--import', 'tsx'], serialization: 'advanced' })
  const ended = new Promise<never>((_, reject) => {
    child.once('error', reject)
    child.once('exit', code => reject(new Error(`the sending process ended with ${code ?? 'a signal'}`)))
  })
  ended.catch(() => {})

  function order(what: Order, progress: (seconds: number, sent: Sent) => void = () => {}) {
    const done = new Promise<Sent | undefined>(resolve => {
      const listen = (report: Report) => {
        if (report.kind === 'progress') return progress(report.seconds, report.sent)
        child.off('message', listen)
        resolve(report.kind === 'done' ? report.sent : undefined)
      }
      child.on('message', listen)
    })
    child.send(what)
    return Promise.race([done, ended])
  }
  const sent = async (what: Order, progress?: (seconds: number, sent: Sent) => void) => (await order(what, progress))!

  return {
    /** The server to send to, and what; replaces what was there before. */
    connect: (port: number, connections: number, templates: Template[]) => order({ kind: 'connect', port, connections, templates }),
    /** Follows the schedule to its end, or until stop(). */
    open: (schedule: Schedule, warmup: number, progress?: (seconds: number, sent: Sent) => void) => (
      sent({ kind: 'open', schedule, warmup }, progress)
    ),
    /** Saturates the server. */
    closed: (seconds: number, warmup: number, from: number) => sent({ kind: 'closed', seconds, warmup, from }),
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
    say(`  ${Math.round(seconds)} s of ${duration} s: ${ok.toLocaleString('en')} answered, ${errors} errors, p99 ${latency.p99.toFixed(1)} ms`)
  }
}
