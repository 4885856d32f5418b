import t from 'tap'
import { generator } from '../../testing/random.ts'
import { spread } from './spread.ts'

const INTERVALS = [1, 5, 10, 19, 20, 21, 24, 25, 30, 59, 60, 61, 100, 300, 3_600, 86_399, 86_400]
/** Some moment that is no round one. */
const NOON = Date.UTC(2026, 0, 31, 12, 0, 7, 345)

t.test('a device that obeys is never late, and never asked for two heartbeats in ten seconds', async t => {
  const random = generator(1)
  for (const interval of INTERVALS) {
    let [least, most] = [Infinity, 0]
    for (let n = 0; n < 20_000; n++) {
      const deviceId = n < 1_000 ? n + 1 : Math.floor(random() * Number.MAX_SAFE_INTEGER)
      const seconds = spread(deviceId, interval, NOON + random() * 1e11, random())
      if (!Number.isInteger(seconds)) t.fail(`${seconds} is not a whole number`)
      least = Math.min(least, seconds)
      most = Math.max(most, seconds)
    }
    if (interval < 20) {
      t.same([least, most], [interval, interval], `${interval} s is left as it is`)
      continue
    }
    t.ok(least >= 10, `${interval} s: at least ${least}`)
    t.ok(least >= 0.25 * interval, `${interval} s: at least ${least}`)
    t.ok(most <= Math.ceil((interval < 25 ? 1.5 : 1.4) * interval), `${interval} s: at most ${most}`)
    // fleet.late_after(), less a quarter of the interval for jitter and some seconds for transport.
    t.ok(most <= 1.5 * interval + 15 - 0.25 * interval - 4, `${interval} s: at most ${most}`)
    t.ok(most - least >= 0.99 * interval - 1, `${interval} s: every moment can be reached with one answer`)
  }
})

t.test('a device that keeps to its moment is asked for its interval, and small differences are corrected at once', async t => {
  for (const interval of [20, 60, 300, 3_600]) {
    const first = NOON + 1_000 * spread(42, interval, NOON, 0.5)
    t.equal(spread(42, interval, first, 0.5), interval)
    for (const late of [-2, -1, 1, 2]) t.equal(spread(42, interval, first + late * 1_000, 0.5), interval - late, `${late} s late`)
    t.same(
      [spread(42, interval, first, 0), spread(42, interval, first, 1)],
      [interval - 2, interval + 2],
      'it varies by two seconds',
    )
    // An agent that counts from the answer is a little later each time.
    for (let n = 0, at = first; n < 100; n++) {
      const seconds = spread(42, interval, at)
      // Two seconds for this answer, and two for the one before.
      if (Math.abs(seconds - interval) > 5) t.fail(`${interval} s: ${seconds} s after ${n} heartbeats`)
      at += 1_000 * seconds + 30
    }
  }
})

/** When a server answers that pauses for 300 ms every 4 seconds, and then answers all that waited, one after the other. */
function answeredAt(at: number) {
  const inPause = at % 4_000
  return inPause < 300 ? at - inPause + 300 + inPause / 3 : at + 5
}

/** A fleet whose devices are all due at the same time, as after an outage. Returns how many heartbeats come in each second. */
function simulate({ interval, jitter, answer }: { interval: number; jitter: number; answer: typeof spread }) {
  const devices = 30_000
  const random = generator(7)
  const seconds = new Int32Array(20 * interval)
  for (let deviceId = 1; deviceId <= devices; deviceId++) {
    // The server needs some seconds for all of them.
    let at = (deviceId / devices) * 8_000
    while (at < 20_000 * interval) {
      seconds[Math.floor(at / 1_000)]!++
      at = answeredAt(at)
      at += 1_000 * (answer(deviceId, interval, NOON + at, random()) + (2 * random() - 1) * jitter)
    }
  }
  return seconds
}

function peakToMean(seconds: Int32Array) {
  return Math.max(...seconds) / (seconds.reduce((sum, count) => sum + count, 0) / seconds.length)
}

t.test('within two intervals, a fleet that came all at once is spread evenly', async t => {
  for (const interval of [30, 60, 100])
    for (const jitter of [0, interval / 4]) {
      const herd = simulate({ interval, jitter, answer: (_, interval) => interval }).subarray(2 * interval, 6 * interval)
      // It stays flat, too.
      const flat = simulate({ interval, jitter, answer: spread }).subarray(2 * interval)
      const what = `${interval} s ± ${jitter} s: peak / mean is ${peakToMean(flat).toFixed(2)}, was ${peakToMean(herd).toFixed(2)}`
      // Chance alone gives less than 1.2 at 300 to 1,000 heartbeats a second.
      t.ok(peakToMean(flat) <= 1.25, what)
      t.ok(peakToMean(herd) >= 1.5, what)
    }
})

t.test('so are the devices of a small fleet, and of a part of it', async t => {
  for (const [devices, step] of [
    [10, 1],
    [100, 1],
    [100, 7],
    [100, 2],
    [100, 10],
  ] as const) {
    const moments = Array.from({ length: devices }, (_, n) => spread((n + 1) * step, 3_600, NOON, 0.5)).sort((a, b) => a - b)
    const gaps = moments.map((moment, n) => (n === 0 ? moment + 3_600 - moments.at(-1)! : moment - moments[n - 1]!))
    t.ok(Math.max(...gaps) <= 5 * (3_600 / devices), `${devices} devices, every ${step}th: at most ${Math.max(...gaps)} s apart`)
  }
})
