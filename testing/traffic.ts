// Load for tests: senders that behave as agents do, and what must be true of the store afterwards.
import { setTimeout as sleep } from 'node:timers/promises'
import type { Sql } from 'postgres'
import type { Test } from 'tap'
import { waitFor } from './database.ts'
import { client } from './server.ts'

const BATCH = 25

interface Device {
  device_id: number
  token: string
}

export type Traffic = ReturnType<typeof startTraffic>

/** Many devices at once. */
export async function enrollMany(sql: Sql, count: number): Promise<Device[]> {
  const rows = await sql<{ device_id: string; token: string }[]>`
    select d.device_id, d.token
    from generate_series(1, ${count}::int) n, fleet.create_device('sender ' || n || ' ' || gen_random_uuid()) d
  `
  return rows.map(({ device_id, token }) => ({ device_id: Number(device_id), token }))
}

/**
 * Each device posts one request after the other, to the first, second, … URL in turn; the first `batchers` of them post
 * batches. Each waits up to `pause` ms before its next. What was not acknowledged is sent again.
 */
export function startTraffic(urls: string[], devices: Device[], { batchers = 0, pause = 0 } = {}) {
  const base = Date.now() - 60_000
  const traffic = {
    /** `device ts` of each heartbeat that was answered as stored, or as a duplicate of one that was sent before. */
    acknowledged: new Set<string>(),
    /** Requests answered by 5xx with a Retry-After. */
    refused: 0,
    /** Connections that ended without an answer. */
    cut: 0,
    /** Answers that no device should get. */
    wrong: [] as string[],
    stop: () => {
      running = false
      return done
    },
  }
  let running = true
  const done = Promise.all(
    devices.map(async ({ device_id, token }, sender) => {
      const call = client(urls[sender % urls.length]!)
      const isBatcher = sender < batchers
      let next = 0
      let beats: { ts: string }[] = []
      while (running) {
        // Otherwise so many would leave the server no time on the machine that they share.
        await sleep(Math.random() * pause)
        // Each in a bucket of its own.
        while (beats.length < (isBatcher ? BATCH : 1)) beats.push({ ts: new Date(base - 10_000 * next++).toISOString() })
        try {
          const { status, headers, body } = isBatcher
            ? await call('POST /v1/heartbeats', { token, body: beats })
            : await call('POST /v1/heartbeat', { token, body: beats[0] })
          const results = isBatcher ? (body as { results?: { result: string }[] }).results : [body as { result?: string }]
          if (status < 300 && results?.every(({ result }) => result === 'stored' || result === 'duplicate')) {
            for (const { ts } of beats) traffic.acknowledged.add(`${device_id} ${ts}`)
            beats = []
          } else if (status >= 500 && /^\d+$/.test(headers.get('retry-after') ?? '')) {
            traffic.refused++
            await sleep(Math.random() * 500) // sooner than it was told
          } else {
            traffic.wrong.push(`${status} ${JSON.stringify(body)}`)
            await sleep(100)
          }
        } catch {
          traffic.cut++
          await sleep(50)
        }
      }
    }),
  )
  return traffic
}

/** Waits until some more was acknowledged. */
export async function more({ acknowledged }: Traffic, count = 1_000) {
  const before = acknowledged.size
  await waitFor(async () => acknowledged.size >= before + count, { what: () => `${count} more heartbeats to be acknowledged` })
}

/** Nothing acknowledged is missing, nothing is there twice, and last status follows. */
export async function checkStored(t: Test, sql: Sql, { acknowledged, wrong }: Traffic) {
  const rows = await sql<{ device_id: string; ts: Date }[]>`select device_id, ts from fleet.device_heartbeats`
  const kept = new Set(rows.map(row => `${row.device_id} ${row.ts.toISOString()}`))
  t.same(
    [...acknowledged].filter(beat => !kept.has(beat)),
    [],
    `all of ${acknowledged.size} acknowledged heartbeats are stored`,
  )
  t.equal(kept.size, rows.length, 'none is stored twice')
  t.same(wrong.slice(0, 5), [], 'every other answer was a 5xx with Retry-After')
  const stale = await sql`
    select device_id
    from (select device_id, max(ts) as ts from fleet.device_heartbeats group by device_id) newest
    left join fleet.device_last_status s using (device_id)
    where s.last_ts is distinct from newest.ts
  `
  t.same([...stale], [], 'last status is that of the newest heartbeat')
}
