import type { Sql } from 'postgres'
import type { Log } from './log.ts'

/** A client with one connection. The types of its values do not matter. */
export type ListeningClient = Pick<Sql, 'listen' | 'notify' | 'end'>

export interface ListenerOptions {
  /** The program, whose name begins the names of the events in the log. */
  service: string
  channel: string
  /** The name of this process, so that it knows its own pings. */
  worker: string
  connect: () => ListeningClient
  onWake: () => void
  log: Log
}

/**
 * Listens for work. `onWake` is also called whenever listening starts or restarts, because notifications in between are
 * lost. postgres.js listens again after a lost connection, but not if its first attempt fails, for example while
 * Postgres restarts. So `check`, which is called at intervals, sends itself a notification, and listens again if the last one
 * did not arrive.
 */
export function openListener({ service, channel, worker, connect, onWake, log }: ListenerOptions) {
  const ping = `ping ${worker}`
  let sql = connect()
  let isHeard = true

  async function listen() {
    await sql.listen(
      channel,
      payload => {
        if (payload === ping) isHeard = true
        else if (!payload.startsWith('ping ')) onWake()
      },
      onWake,
    )
  }

  return {
    listen,
    async check() {
      try {
        if (!isHeard) {
          log.warn({ event: `${service}.listen.again` }, 'notifications stopped; listening again')
          const old = sql
          sql = connect()
          void old.end({ timeout: 0 }).catch(() => {})
          await listen()
        }
        isHeard = false
        await sql.notify(channel, ping)
      } catch (error) {
        log.warn({ event: `${service}.listen.failed`, error }, 'notifications may be lost; trying again')
      }
    },
    async close() {
      await sql.end({ timeout: 1 })
    },
  }
}
