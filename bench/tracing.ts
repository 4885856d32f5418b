/*
 * Measures what traces cost the server: its CPU time per single heartbeat with tracing off (without OTEL_EXPORTER_OTLP_ENDPOINT),
 * with tracing on and each request sent to a collector that only answers, and, with --against, in another clone, for example at a
 * commit before there were traces. It measures CPU time and not heartbeats per second, because CPU time is the same on a busy
 * machine. The database is not included, because its share would hide the difference.
 */
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { resolve } from 'node:path'
import { repository } from '../lib/repository.ts'
import { say } from '../lib/progress.ts'
import { median, type Figure } from './figure.ts'
import { startSender } from './heartbeats.ts'
import { readOptions } from './options.ts'
import { usageOf } from './processes.ts'
import { enroll, startServer, withStore } from './store.ts'

const options = {
  rounds: { otherwise: 5, what: 'number of rounds' },
  seconds: { otherwise: 6, what: 'seconds of each measurement' },
  warmup: { otherwise: 3, what: 'seconds before each measurement' },
  devices: { otherwise: 500, what: 'devices that send' },
  connections: { otherwise: 64, what: 'connections that they share' },
  against: { otherwise: '', what: 'directory of another clone, with its packages' },
} as const

export async function benchTracing(args: string[]): Promise<Figure[]> {
  const given = readOptions('bench -- tracing', args, options)
  const collector = createServer((request, response) => {
    request.resume()
    response.end('{}')
  })
  await new Promise<void>(listening => {
    collector.listen(0, '127.0.0.1', listening)
  })
  const OTEL_EXPORTER_OTLP_ENDPOINT = `http://127.0.0.1:${(collector.address() as AddressInfo).port}`
  const ways: { name: string; root: string; env: Record<string, string> }[] = [
    { name: 'off', root: repository, env: {} },
    { name: 'on', root: repository, env: { OTEL_EXPORTER_OTLP_ENDPOINT } },
    ...(given.against === '' ? [] : [{ name: 'in the other clone', root: resolve(given.against), env: {} }]),
  ]
  const sender = startSender()
  try {
    return await withStore(async store => {
      const devices = await enroll(store, given.devices)
      const micros = new Map<string, number[]>(ways.map(({ name }) => [name, []]))
      let from = Date.now() - 5 * 86_400_000
      for (let round = 1; round <= given.rounds; round++) {
        for (const { name, root, env } of ways) {
          const server = await startServer(store, {
            variant: 'without-database.ts',
            root,
            env: { WORKERS: '1', DEVICE_REQUESTS_PER_MINUTE: '100000', ...env },
          })
          try {
            await sender.connect(server.port, given.connections, devices)
            from = (await sender.closed(given.warmup, 0, from)).until
            const before = await usageOf(server.pid)
            const { ok, errors, problems, until } = await sender.closed(given.seconds, 0, from)
            const { cpuSeconds } = await usageOf(server.pid)
            if (errors) throw new Error(`${errors} of ${ok + errors} requests failed: ${JSON.stringify(problems)}`)
            from = until
            micros.get(name)!.push((1e6 * (cpuSeconds - before.cpuSeconds)) / ok)
          } finally {
            await server.stop()
          }
        }
        say(`round ${round}: ${ways.map(({ name }) => `${name} ${micros.get(name)!.at(-1)!.toFixed(1)} µs`).join(', ')}`)
      }
      const [off, ...others] = ways.map(({ name }) => ({ name, values: micros.get(name)! }))
      return [
        { name: 'CPU of a heartbeat, tracing off', measured: median(off!.values), unit: 'µs' },
        ...others.flatMap(({ name, values }): Figure[] => [
          { name: `CPU of a heartbeat, ${name}`, measured: median(values), unit: 'µs' },
          { name: `${name} / off`, measured: median(values.map((value, round) => value / off!.values[round]!)), unit: '' },
        ]),
      ]
    })
  } finally {
    sender.end()
    collector.close()
    collector.closeAllConnections()
  }
}
