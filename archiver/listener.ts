import { connect, type Database } from './database.ts'
import type { Log } from '../lib/log.ts'

const CHANNEL = 'fleet_archiver'

/**
 * Listens for work. `onWake` is also called whenever listening began (anew), because what was notified in between is
 * lost. postgres.js listens again after a lost connection, but not when its first try at that fails, as while
 * Postgres restarts; so `check`, called now and then, sends itself a word and begins anew when none arrived.
 */
export function openListener(database: Database, worker: string, onWake: () => void, log: Log) {
  const ping = `ping ${worker}`
  let sql = connect(database, { max: 1, application_name: 'fleet-archiver listen' })
  let isHeard = true

  async function listen() {
    await sql.listen(
      CHANNEL,
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
          log.warn({ event: 'archiver.listen.again' }, 'notifications stopped; listening anew')
          const old = sql
          sql = connect(database, { max: 1, application_name: 'fleet-archiver listen' })
          void old.end({ timeout: 0 }).catch(() => {})
          await listen()
        }
        isHeard = false
        await sql.notify(CHANNEL, ping)
      } catch (error) {
        log.warn({ event: 'archiver.listen.failed', error }, 'notifications may be lost; trying again')
      }
    },
    async close() {
      await sql.end({ timeout: 1 })
    },
  }
}
