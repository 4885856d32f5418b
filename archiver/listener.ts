import { connect, type Database } from './database.ts'
import type { Log } from '../lib/log.ts'

const CHANNEL = 'fleet_archiver'

/**
 * Listens for work. `onWake` is also called whenever listening starts or restarts, because notifications in between are
 * lost. postgres.js listens again after a lost connection, but not if its first attempt fails, for example while
 * Postgres restarts. So `check`, which is called at intervals, sends itself a notification, and listens again if the last one
 * did not arrive.
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
          log.warn({ event: 'archiver.listen.again' }, 'notifications stopped; listening again')
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
