import { fork } from 'node:child_process'
import { built } from '../lib/repository.ts'
import { say } from '../lib/progress.ts'
import type { Order, Report, Sent, Template } from './sender.ts'
import type { Schedule } from './schedule.ts'

/** Controls the sending process. It takes one order at a time, except for acknowledged() and stop() during open(). */
export type Sender = ReturnType<typeof startSender>

export function startSender() {
  const child = fork(built('bench/sender.ts'), { execArgv: ['--enable-source-maps'], serialization: 'advanced' })
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
    /** Sets the server and the requests, in place of earlier ones. */
    connect: (port: number, connections: number, templates: Template[]) =>
      order({ kind: 'connect', port, connections, templates }, 'ready'),
    /** Sends by the schedule until it ends or until stop(). */
    open: (schedule: Schedule, warmup: number, progress?: (seconds: number, sent: Sent) => void, records = false) =>
      sent({ kind: 'open', schedule, warmup, records }, progress),
    /** Sends as fast as the server answers. */
    closed: (seconds: number, warmup: number, from: number) => sent({ kind: 'closed', seconds, warmup, from }),
    /** Returns what was answered with 2xx since the last call, if open() records it. Can be called at any time. */
    acknowledged: async () => (await order({ kind: 'acknowledged' }, 'acknowledged')).beats,
    /** Ends open() early. It still waits for the answers to what was sent. */
    stop: () => child.send({ kind: 'stop' } satisfies Order),
    end() {
      if (child.connected) child.disconnect()
    },
  }
}

/** Returns a function that prints the progress every ten seconds. */
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
