import { fork } from 'node:child_process'
import { setTimeout as sleep } from 'node:timers/promises'
import { built } from '../lib/repository.ts'
import { ACKNOWLEDGED, ITEM_MS, type FleetOrder, type FleetReport, type Order } from './fleet-order.ts'
import type { Store } from './store.ts'

/** Two heartbeats of a device in the same bucket would be duplicates. */
export const BUCKET_S = 10

/** Controls the process that sends as a fleet. */
export function startFleet() {
  const child = fork(built('bench/fleet-sender.ts'), { execArgv: ['--enable-source-maps'], serialization: 'advanced' })
  const ended = new Promise<never>((_, reject) => {
    child.once('error', reject)
    child.once('exit', code => reject(new Error(`the sending process ended with ${code ?? 'a signal'}`)))
  })
  ended.catch(() => {})
  const order = (what: Order) => child.send(what)
  let mayStart = 0
  return {
    pid: child.pid ?? 0,
    /** Waits until what was sent last is in an earlier bucket than the oldest heartbeat of a batch. Call it before send(). */
    rest: () => sleep(Math.max(0, mayStart - Date.now())),
    /** Sends until every request is acknowledged or lost. Only one run at a time. */
    async send(what: FleetOrder): Promise<FleetReport> {
      const done = new Promise<FleetReport>(resolve => child.once('message', report => resolve(report as FleetReport)))
      order({ kind: 'send', ...what })
      const report = await Promise.race([done, ended])
      mayStart = Date.now() + 1000 * (BUCKET_S + 1) + what.batch * ITEM_MS
      return report
    },
    /** What becomes due from now on is reported as another part. */
    part: (name: string) => order({ kind: 'part', name }),
    end() {
      if (child.connected) child.disconnect()
    },
  }
}

/**
 * Looks for each acknowledged heartbeat of a run in fleet.device_heartbeats: a row with the same device and exactly the same `ts`.
 * @returns `missing`, how many acknowledged heartbeats have no such row, and `others`, the rows of that time that no
 * acknowledgement belongs to, because the answer was lost
 */
export async function findAcknowledged({ admin }: Store, { singles, batch }: FleetOrder, report: FleetReport) {
  const { startedAt, due, unit, state, refused } = report
  // A session of its own, for the temporary table.
  const session = await admin.reserve()
  try {
    await session`create temporary table sent (request integer, unit integer, due integer)`
    const copy = await session`copy sent from stdin`.writable()
    let lines = ''
    const write = async () => {
      if (!copy.write(lines)) await new Promise<void>(resolve => copy.once('drain', () => resolve()))
      lines = ''
    }
    for (let request = 0; request < state.length; request++) {
      if (state[request] !== ACKNOWLEDGED) continue
      lines += `${request}\t${unit[request]!}\t${due[request]!}\n`
      if (lines.length > 1_000_000) await write()
    }
    await write()
    await new Promise<void>((resolve, reject) => {
      copy.once('finish', () => resolve())
      copy.once('error', reject)
      copy.end()
    })
    await session`create temporary table refused (request integer, item integer)`
    await session`
      insert into refused
      select * from json_to_recordset(${JSON.stringify(refused)}::text::json) as r (request integer, item integer)
    `
    await session`set work_mem = '512MB'`
    await session`analyze sent`
    const from = new Date(startedAt - batch * ITEM_MS)
    const [found] = await session<{ acknowledged: number; missing: number; stored: number }[]>`
      with stored as materialized (
        select device_id, ts from fleet.device_heartbeats where ts >= ${from}
      ), acknowledged as (
        select
          case when s.unit < ${singles}::integer then s.unit + 1
            else ${singles}::integer + (s.unit - ${singles}::integer) * ${batch}::integer + i.item + 1 end::bigint as device_id,
          ${new Date(startedAt)}::timestamptz + (s.due - i.item * ${ITEM_MS}::integer) * interval '1 millisecond' as ts
        from sent s
        cross join lateral generate_series(0, case when s.unit < ${singles}::integer then 0 else ${batch}::integer - 1 end) as i (item)
        where not exists (select from refused r where r.request = s.request and r.item = i.item)
      )
      select
        count(*)::integer as acknowledged,
        (count(*) filter (where h.device_id is null))::integer as missing,
        (select count(*)::integer from stored) as stored
      from acknowledged a
      left join stored h using (device_id, ts)
    `
    const { acknowledged, missing, stored } = found!
    if (acknowledged !== report.acknowledged)
      throw new Error(`the sender counted ${report.acknowledged} acknowledged heartbeats, the database was given ${acknowledged}`)
    return { missing, others: stored - (acknowledged - missing) }
  } finally {
    await session`drop table if exists sent, refused`
    await session`reset work_mem`
    session.release()
  }
}
