import fc from 'fast-check'
import t from 'tap'
import { hostileText } from '../testing/hostile-text.ts'
import { visitor } from '../testing/page.ts'
import { ago, enroll, lastStatus, withServer } from '../testing/server.ts'

/** The first `max` characters, counted by code points. */
const cut = (text: string, max: number) => [...text].slice(0, max).join('')

/** What is stored of a text: null if it is a word for unknown. */
const known = (text: string) => (/^(unknown|null|n\/a)?$/i.test(text.trim()) ? null : text)

t.test('text that arrives over HTTP is stored unchanged, or refused', { timeout: 300_000 }, async t => {
  const { db, call, url } = await withServer(t)
  const headers = await visitor(url).login()
  const { device_id, token } = await enroll(db, 'a')
  const tables = () => db.admin`select count(*)::int as tables from pg_class where relname = 'pwned'`
  const seen = new Set<string>()
  // Each heartbeat is in a bucket of its own, and newer than all before it.
  let age = 86_400
  await fc.assert(
    fc.asyncProperty(hostileText, hostileText, hostileText, async (one, two, three) => {
      const texts = { network_type: cut(one, 32), agent_version: cut(two, 64) }
      const expected = { network_type: known(texts.network_type), agent_version: known(texts.agent_version) }
      const beat = await call('POST /v1/heartbeat', { token, body: { ...texts, ts: ago((age -= 20)) } })
      if (beat.status !== 201) throw new Error(`a heartbeat: ${beat.status} ${JSON.stringify(beat.body)}`)
      t.match(await lastStatus(db, device_id), expected)
      t.equal((await call(`GET /v1/devices/${device_id}`, { admin: true })).status, 200)

      const alias = cut(one + two, 200)
      const cohort = cut(three, 100)
      const made = await call('POST /admin/devices', { admin: true, body: { alias, cohort } })
      if (made.status === 201) {
        const { device_id: id } = made.body as { device_id: number }
        t.match(await db.sql`select alias, cohort from fleet.devices where device_id = ${id}`, [{ alias, cohort }])
        seen.add(alias)
      } else if (made.status !== 422 && !(made.status === 409 && seen.has(alias)))
        throw new Error(`a device: ${made.status} ${JSON.stringify(made.body)}`)

      const payload = { [two]: one, list: [three] }
      const sent = await call('POST /admin/command', { admin: true, body: { device_id, command: cut(three, 64), payload } })
      if (sent.status === 201) {
        const { command_id } = sent.body as { command_id: number }
        t.same(await db.sql`select command, payload from fleet.device_commands where command_id = ${command_id}`, [
          { command: cut(three, 64), payload },
        ])
      } else if (sent.status !== 422) throw new Error(`a command: ${sent.status} ${JSON.stringify(sent.body)}`)

      const [a, b] = [one, two].map(encodeURIComponent) as [string, string]
      for (const target of [
        `GET /v1/devices?status=${a}`,
        `GET /v1/devices?older_than=${a}&limit=${b}&cursor=${a}`,
        `GET /v1/devices?cursor=${b}`,
        `GET /v1/devices/${a}`,
        `DELETE /admin/devices/${b}`,
        `POST /ops/nightly?dry_run=1&retention_days=${a}`,
        `GET /devices/${a}`,
        `GET /?q=${a}&status=${b}&after=${b}`,
        `GET /?q=${b}&status=all`,
      ]) {
        const { status } = await call(target, { admin: true, headers })
        if (status >= 500) throw new Error(`${target}: ${status}`)
      }
      for (const target of [`POST /v1/commands/${a}/ack`, 'GET /v1/commands']) {
        const { status } = await call(target, { token })
        if (status >= 500) throw new Error(`${target}: ${status}`)
      }
    }),
    { numRuns: 100, endOnFailure: true },
  )
  t.same(await tables(), [{ tables: 0 }], 'none of the text was run as SQL')
  t.ok(seen.size > 50)
})
