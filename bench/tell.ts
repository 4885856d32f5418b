// Measures how long it takes until a webhook is told: from the moment at which a device counts as offline, and from the heartbeat of
// one that is back. pg_cron, the notifier and the receiver are real ones.
import { setTimeout as sleep } from 'node:timers/promises'
import { say, step } from '../lib/progress.ts'
import { waitFor, type Owner } from '../testing/database.ts'
import { withReceiver } from '../testing/webhooks.ts'
import { atMost, percentile, type Figure } from './figure.ts'
import { readOptions } from './options.ts'
import { enroll, startProgram, withStore } from './store.ts'

const OPTIONS = {
  devices: { otherwise: 600, what: 'devices that go offline and come back' },
  spread: { otherwise: 180, what: 'seconds within which they go offline' },
} as const

/** The targets are the project's own (issue "Tell people"). */
export async function benchTell(args: string[]): Promise<Figure[]> {
  const given = readOptions('bench -- tell', args, OPTIONS)
  return withStore(async store => {
    const { admin, cluster } = store
    const devices = (await enroll(store, given.devices)).map(({ device_id }) => device_id)
    // Others, which stay, so that this is no outage of ingest.
    const others = (await enroll(store, given.devices, 'others')).map(({ device_id }) => device_id)
    const endings: (() => unknown)[] = []
    const owner: Owner = { teardown: ending => endings.unshift(ending as () => unknown) }
    const arrived = { offline: new Map<number, number>(), back: new Map<number, number>() }
    try {
      const receiver = await withReceiver(owner, (response, { body }) => {
        const { device } = body.data as { device: { id: number } }
        const kind = body.type === 'device.offline' ? 'offline' : 'back'
        if (!arrived[kind].has(device.id)) arrived[kind].set(device.id, Date.now())
        response.writeHead(204).end()
      })
      // Each is told by itself, however many go offline together.
      await admin`update fleet.settings set silence_min_devices = 1000000`
      await admin`select fleet.create_webhook('bench', ${receiver.url}, array['offline'], p_grace => '0')`
      const notifier = startProgram('notifier/main.ts', {
        env: { NOTIFIER_DATABASE_URL: cluster.url('fleet_notifier', 'fleet'), WEBHOOK_ALLOW: '127.0.0.1' },
      })
      endings.unshift(() => notifier.stop())
      await waitFor(async () => notifier.output().includes('notifier.ready'), { what: () => notifier.output() })

      const hear = (ids: number[]) => admin`
        select fleet.ingest(json_agg(json_build_object('device_id', d, 'ts', clock_timestamp()))) from unnest(${ids}::bigint[]) d`
      await hear([...devices, ...others])
      await admin`
        update fleet.device_last_status ls
        set last_received_at = now() - interval '10 minutes' + random() * ${given.spread}::integer * interval '1 second',
          noted_since = now() - interval '1 hour'
        where device_id = any (${devices})`
      await step(`Waiting for ${given.devices} devices to go offline`, () =>
        waitFor(
          async () => {
            await hear(others)
            return arrived.offline.size >= given.devices
          },
          { timeoutMs: (given.spread + 180) * 1000, every: 10_000, what: () => `all messages; ${arrived.offline.size} arrived` },
        ),
      )
      const since = await admin<{ device_id: string; since: Date }[]>`
        select device_id, since from fleet.device_transitions where event = 'offline' and device_id = any (${devices})`
      const toOffline = since.map(row => (arrived.offline.get(Number(row.device_id))! - row.since.getTime()) / 1000)
      say(`offline: p50 ${percentile(toOffline, 50).toFixed(1)} s, longest ${Math.max(...toOffline).toFixed(1)} s`)

      const sent = new Map<number, number>()
      await step('Hearing from each of them again', async () => {
        for (const device of devices) {
          sent.set(device, Date.now())
          await hear([device])
          await sleep(50)
        }
        await waitFor(async () => arrived.back.size >= given.devices, { timeoutMs: 60_000 })
      })
      const toBack = devices.map(device => (arrived.back.get(device)! - sent.get(device)!) / 1000)
      return [
        { name: 'from offline to the message, p50', measured: percentile(toOffline, 50), unit: 's' },
        { name: 'from offline to the message, p95', measured: percentile(toOffline, 95), unit: 's', target: atMost(65) },
        { name: 'from offline to the message, longest', measured: Math.max(...toOffline), unit: 's' },
        { name: 'from the heartbeat to the message that it is back, p50', measured: percentile(toBack, 50), unit: 's' },
        { name: 'from the heartbeat to the message that it is back, p95', measured: percentile(toBack, 95), unit: 's' },
        {
          name: 'from the heartbeat to the message that it is back, longest',
          measured: Math.max(...toBack),
          unit: 's',
          target: atMost(5),
        },
      ]
    } finally {
      for (const ending of endings) await ending()
    }
  })
}
