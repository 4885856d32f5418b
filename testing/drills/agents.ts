// Devices and a gateway that send all the time, and remember what was acknowledged.
import { setTimeout as sleep } from 'node:timers/promises'
import type { Sql } from 'postgres'
import { waitFor } from '../database.ts'
import { client } from '../server.ts'

interface Device {
  device_id: number
  token: string
}

/** What a device sent in a bucket of ten seconds: the time, and whether it was acknowledged. */
interface Sent {
  ts: number
  isAcknowledged: boolean
}

const BUCKET_MS = 10_000
/** On average, between an answer and the next request. */
const PAUSE_MS = 400

export class Agents {
  acknowledged = 0
  refused = 0
  readonly #devices: Device[]
  readonly #gateway: { token: string; ids: number[] }
  /** By device, in the order of time. */
  readonly #sent = new Map<number, Sent[]>()
  /** How many of a device's are checked already. */
  readonly #checked = new Map<number, number>()
  readonly #start = Math.floor((Date.now() - 20 * 3_600_000) / BUCKET_MS) * BUCKET_MS
  readonly wrong: string[] = []
  #isOver = false
  #running: Promise<unknown> = Promise.resolve()

  private constructor(devices: Device[], gateway: { token: string; ids: number[] }) {
    this.#devices = devices
    this.#gateway = gateway
    for (const id of [...devices.map(({ device_id }) => device_id), ...gateway.ids]) this.#sent.set(id, [])
  }

  static async enroll(sql: Sql, count: number) {
    const rows = await sql<{ device_id: string; token: string }[]>`
      select d.device_id, d.token from generate_series(1, ${2 * count}::integer) n, fleet.create_device('agent ' || n) d`
    const devices = rows.map(({ device_id, token }) => ({ device_id: Number(device_id), token }))
    const [gateway] = await sql<{ token: string }[]>`select fleet.create_gateway_token('drilled') as token`
    const ids = devices.slice(count).map(({ device_id }) => device_id)
    return new Agents(devices.slice(0, count), { token: gateway!.token, ids })
  }

  /** Begins to send, each agent in its turn, to the server that is there then. */
  send(url: () => string) {
    this.#running = Promise.all([
      ...this.#devices.map(device => this.#sendAs(device.token, [device.device_id], url)),
      this.#sendAs(this.#gateway.token, this.#gateway.ids, url),
    ])
  }

  async stop() {
    this.#isOver = true
    await this.#running
  }

  /** Waits until each device was acknowledged again. */
  async more(stage: { server: { output: () => string } }) {
    const before = new Map([...this.#sent].map(([id, sent]) => [id, sent.filter(one => one.isAcknowledged).length]))
    const waiting = () => [...this.#sent].filter(([id, sent]) => sent.filter(one => one.isAcknowledged).length <= before.get(id)!)
    await waitFor(async () => waiting().length === 0, {
      timeoutMs: 90_000,
      what: () => `${waiting().length} devices to be acknowledged again; the server printed:\n${stage.server.output()}`,
    })
  }

  async #sendAs(token: string, ids: number[], url: () => string) {
    const isGateway = ids.length > 1
    for (let turn = 0; !this.#isOver; turn++) {
      const ts = this.#start + turn * BUCKET_MS
      const entries = ids.map(id => {
        const entry = { ts, isAcknowledged: false }
        this.#sent.get(id)!.push(entry)
        return entry
      })
      const at = new Date(ts).toISOString()
      const battery_pct = turn % 101
      while (
        !(await this.#try(
          url(),
          token,
          isGateway ? ids.map(device_id => ({ device_id, ts: at, battery_pct })) : { ts: at, battery_pct },
        ))
      ) {
        if (this.#isOver) return
        await sleep(Math.random() * 400)
      }
      for (const entry of entries) entry.isAcknowledged = true
      this.acknowledged += entries.length
      await sleep(Math.random() * 2 * PAUSE_MS)
    }
  }

  /** Whether it was acknowledged. Otherwise the same is sent again, as agents do. */
  async #try(url: string, token: string, body: object) {
    try {
      const answer = await client(url)(Array.isArray(body) ? 'POST /v1/heartbeats' : 'POST /v1/heartbeat', { token, body })
      const { results = [answer.body as { result: string }] } = answer.body as { results?: { result: string }[] }
      if (answer.status < 300 && results.every(({ result }) => result === 'stored' || result === 'duplicate')) return true
      if (answer.status === 503 && /^\d+$/.test(answer.headers.get('retry-after') ?? '')) this.refused++
      else this.wrong.push(`an agent was answered ${answer.status} ${JSON.stringify(answer.body).slice(0, 300)}`)
    } catch {
      // The server was killed, or the connection was cut.
      this.refused++
    }
    return false
  }

  /**
   * What is wrong, a sentence each.
   * @param isAll also what was right before
   */
  async problems(sql: Sql, isAll: boolean): Promise<string[]> {
    const wrong = [...this.wrong]
    // What is on its way may be stored before or after this is read.
    const known = new Map(
      [...this.#sent].map(([id, sent]) => [id, { until: sent.length, acked: sent.map(one => one.isAcknowledged) }]),
    )
    const from = isAll ? 0 : Math.min(...[...this.#sent.keys()].map(id => this.#checked.get(id) ?? 0))
    const rows = await sql<{ device_id: string; ts: Date; battery_pct: number }[]>`
      select device_id, ts, battery_pct from fleet.device_heartbeats
      where ts >= ${new Date(this.#start + from * BUCKET_MS)} and device_id = any (${`{${[...this.#sent.keys()].join()}}`}::text::bigint[])`
    const stored = new Map<string, number>()
    for (const { device_id, ts } of rows) {
      const key = `${device_id} ${ts.getTime()}`
      stored.set(key, (stored.get(key) ?? 0) + 1)
    }
    for (const [id, { until, acked }] of known) {
      const sent = this.#sent.get(id)!
      for (let turn = from; turn < until; turn++) {
        const key = `${id} ${sent[turn]!.ts}`
        const times = stored.get(key) ?? 0
        if (acked[turn] ? times !== 1 : times > 1)
          wrong.push(`the heartbeat of device ${id} at ${new Date(sent[turn]!.ts).toISOString()} is stored ${times} times`)
      }
      this.#checked.set(id, Math.max(0, until - 1))
    }
    for (const key of stored.keys()) {
      const [id, ts] = key.split(' ').map(Number) as [number, number]
      if (!this.#sent.get(id)!.some(one => one.ts === ts))
        wrong.push(`device ${id} never sent what is stored at ${new Date(ts).toISOString()}`)
    }
    // In one statement, so that both are from the same moment on each node.
    const stale = await sql<{ device_id: string; last_ts: Date | null; newest: Date; battery_pct: number }[]>`
      select ls.device_id, ls.last_ts, n.ts as newest, ls.battery_pct
      from fleet.device_last_status ls
      join (
        select h.device_id, max(h.ts) as ts from fleet.device_heartbeats h
        where h.ts >= ${new Date(this.#start)} group by h.device_id
      ) n on n.device_id = ls.device_id
      where ls.last_ts is distinct from n.ts
        or ls.battery_pct <> mod((extract(epoch from n.ts - ${new Date(this.#start)}::timestamptz) / 10)::integer, 101)`
    for (const { device_id, last_ts, newest } of stale)
      wrong.push(
        `last status of device ${device_id} is from ${last_ts?.toISOString() ?? 'never'}, its newest heartbeat from ${newest.toISOString()}`,
      )
    return wrong
  }
}
