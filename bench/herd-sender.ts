/*
 * The process that sends as devices that obey the server: each sends, waits for the answer, and sends again after the time for which
 * the answer asks. At the start all are due at once, and send what they kept.
 *
 * What is not answered is sent again, as a device does it: after 1, 2, 4 and then every 8 s, or after Retry-After if that is longer,
 * each a random quarter earlier or later.
 */
import { performance } from 'node:perf_hooks'
import { setTimeout as sleep } from 'node:timers/promises'
import { generator } from '../testing/random.ts'
import { Connection } from './connection.ts'
import { DEVICE_TOKEN, TOKEN_DIGITS } from './fleet-order.ts'
import type { HerdOrder, HerdReport } from './herd-order.ts'
import { Queue } from './queue.ts'

/** This is longer than the server's own timeout for statements. */
const ANSWER_MS = 15_000
const SLOT_MS = 10
const BACKOFF_S = [1, 2, 4, 8]
const FIELDS = '"network_type":"wifi","unity_running":true,"signal_dbm":-61,"agent_version":"3.1.0"'

/** A connection and the device whose request it carries. */
class Client {
  device = -1
  readonly connection: Connection

  constructor(
    run: Run,
    readonly number: number,
  ) {
    this.connection = new Connection(run.order.port, (answer, problem) => {
      run.answered(this.device, answer, problem)
      run.free(this)
    })
  }
}

class Run {
  #start = performance.now() + 100
  #clients: Client[]
  #free: Queue
  /** Devices that are due and wait for a connection. */
  #waiting: Queue
  /** Devices by when they are due, in slots of SLOT_MS; and those that send again. */
  #due = new Map<number, number[]>()
  #again = new Map<number, number[]>()
  #slot = 0
  #dueAt: Float64Array
  #attempts: Uint8Array
  #isBack: Uint8Array
  #left: number
  #random = generator(11)
  #report: HerdReport

  constructor(readonly order: HerdOrder) {
    const { devices, connections, seconds } = order
    this.#clients = Array.from({ length: connections }, (_, number) => new Client(this, number))
    this.#free = new Queue(connections)
    for (let number = 0; number < connections; number++) this.#free.push(number)
    this.#waiting = new Queue(devices)
    this.#dueAt = new Float64Array(devices)
    this.#attempts = new Uint8Array(devices)
    this.#isBack = new Uint8Array(devices)
    this.#left = devices
    this.#due.set(
      0,
      Array.from({ length: devices }, (_, device) => device),
    )
    this.#report = {
      offered: new Int32Array(seconds),
      drained: NaN,
      waits: { least: Infinity, most: 0 },
      answered: 0,
      retries: 0,
      problems: {},
      delayed: 0,
      cpuSeconds: 0,
    }
  }

  async run(): Promise<HerdReport> {
    const cpu = process.cpuUsage()
    const watch = setInterval(() => this.#closeSlow(), 1_000)
    for (let now = 0; now < this.order.seconds * 1_000; now = this.#now()) {
      for (; this.#slot <= now / SLOT_MS; this.#slot++) {
        for (const device of this.#due.get(this.#slot) ?? []) {
          this.#report.offered[Math.floor(this.#dueAt[device]! / 1_000)]!++
          this.#waiting.push(device)
        }
        for (const device of this.#again.get(this.#slot) ?? []) this.#waiting.push(device)
        this.#due.delete(this.#slot)
        this.#again.delete(this.#slot)
      }
      this.#dispatch()
      await sleep(1)
    }
    clearInterval(watch)
    this.#left = 0
    for (const { connection } of this.#clients) connection.close('done')
    const { user, system } = process.cpuUsage(cpu)
    return { ...this.#report, cpuSeconds: (user + system) / 1e6 }
  }

  free({ number }: Client) {
    this.#free.push(number)
    this.#dispatch()
  }

  answered(device: number, answer: string, problem?: string) {
    const now = this.#now()
    const said = answer.lastIndexOf('"next_interval_s":')
    if (problem !== undefined || !/^HTTP\/1\.1 20[01] /.test(answer) || said < 0) {
      this.#fail(
        device,
        now,
        problem ?? `status ${answer.slice(9, 12)}`,
        Number(/\r\nretry-after: *(\d+)/i.exec(answer)?.[1] ?? 0),
      )
      return
    }
    const { interval, jitter, obeys } = this.order
    const asked = obeys ? Number.parseInt(answer.slice(said + 18)) : interval
    const wait = asked + (2 * this.#random() - 1) * jitter
    const { waits } = this.#report
    waits.least = Math.min(waits.least, wait)
    waits.most = Math.max(waits.most, wait)
    this.#report.answered++
    this.#attempts[device] = 0
    if (this.#isBack[device] === 0) {
      this.#isBack[device] = 1
      if (--this.#left === 0) this.#report.drained = now / 1_000
    }
    this.#dueAt[device] = now + wait * 1_000
    put(this.#due, this.#dueAt[device] / SLOT_MS, device)
  }

  #now() {
    return performance.now() - this.#start
  }

  #dispatch() {
    while (this.#waiting.length > 0 && this.#free.length > 0 && this.#now() >= 0) {
      const device = this.#waiting.shift()
      if (this.#isBack[device] === 1 && this.#left === 0 && this.#now() - this.#dueAt[device]! > 1_000) this.#report.delayed++
      const client = this.#clients[this.#free.shift()]!
      client.device = device
      client.connection.send(this.#request(device))
    }
  }

  #request(device: number) {
    const now = performance.timeOrigin + performance.now()
    const beat = (ago: number) =>
      `{"ts":"${new Date(now - ago * 1_000).toISOString()}","battery_pct":${10 + (device % 90)},${FIELDS}}`
    const token = `${DEVICE_TOKEN}${(device + 1).toString(16).padStart(TOKEN_DIGITS, '0')}`
    const { kept, interval } = this.order
    const isFirst = this.#isBack[device] === 0
    const body = isFirst ? `[${Array.from({ length: kept + 1 }, (_, n) => beat((kept - n) * interval)).join(',')}]` : beat(0)
    const path = isFirst ? 'heartbeats' : 'heartbeat'
    return `POST /v1/${path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer ${token}\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`
  }

  #fail(device: number, now: number, problem: string, retryAfter: number) {
    const { problems } = this.#report
    if (problem === 'done') return
    problems[problem] = (problems[problem] ?? 0) + 1
    this.#report.retries++
    const attempt = this.#attempts[device]!++
    const pause = Math.max(BACKOFF_S[attempt] ?? BACKOFF_S.at(-1)!, retryAfter) * 1_000 * (0.75 + this.#random() / 2)
    put(this.#again, (now + pause) / SLOT_MS, device)
  }

  #closeSlow() {
    const late = performance.now() - ANSWER_MS
    for (const { connection } of this.#clients) if (connection.sentAt < late) connection.close('no answer')
  }
}

function put(slots: Map<number, number[]>, at: number, device: number) {
  const slot = Math.ceil(at)
  const list = slots.get(slot)
  if (list) list.push(device)
  else slots.set(slot, [device])
}

process.on('message', (order: HerdOrder) => {
  void new Run(order).run().then(report => process.send?.(report))
})
process.on('disconnect', () => process.exit())
