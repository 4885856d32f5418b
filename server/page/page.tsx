import { Hono, type Context, type Handler } from 'hono'
import type { Child } from 'hono/jsx'
import { requireScope } from '../auth/acting.ts'
import { cohortsOf, type Principal } from '../auth/principal.ts'
import type { ServerContext } from '../context.ts'
import type { AppEnv } from '../env.ts'
import { timed } from '../ops/metrics.ts'
import { Problem, requestId, toProblem, unavailable } from '../problem.ts'
import { Cache } from '../cache.ts'
import { answer, type Html } from './answer.ts'
import { Archives } from './archives.tsx'
import { serveAssets } from './assets.ts'
import { readBudgets } from './budgets.tsx'
import { Checks, headline, readChecks } from './checks.tsx'
import { daysOf, readPartitions } from './days.ts'
import { Changes, History, readChanges, readHistory } from './changes.tsx'
import { DeviceDay, DeviceFacts, readDay, readDevice } from './device.tsx'
import { Devices, nameOf, readDevices, searchOf } from './devices.tsx'
import { Fleet, readFleet } from './fleet.tsx'
import { plural, short } from './format.ts'
import { IngestRate, IngestRates } from './ingest.tsx'
import { Jobs, readJobs } from './jobs.tsx'
import { Page, Section } from './layout.tsx'
import { localPath, Login, postLogin, postLogout } from './login.tsx'
import { BoundFleet } from './bound.tsx'
import { Attempts } from './attempts.ts'
import { confirmDeed, Do, postDeed } from './deeds.tsx'
import { AuditTable, readAudit, readSessions, SessionTable } from './people.tsx'
import { Oidc } from '../auth/oidc.ts'
import { beginOidc, finishOidc } from './oidc.tsx'
import { PartitionStrip } from './partitions.tsx'
import { settled, toReader } from './result.ts'
import { Semaphore } from './semaphore.ts'
import { Sessions } from './session.ts'
import { readSilence } from './silence.tsx'
import { Storage } from './storage.tsx'
import { readTrend } from './trend.tsx'
import { readUnreadable, UnreadableFields } from './unreadable.tsx'
import { readWebhooks, Webhooks } from './webhooks.tsx'

/** How many of a worker's connections the page may use. */
const MAX_STATEMENTS = 2
/** How long a part may take. After that, the page is sent without it. */
const TIMEOUT_MS = 3_000

/** The page for the person on call. It only reads, and a part that fails does not affect the others. */
export function opsPage(context: ServerContext) {
  const { access, config, log, metrics, pool, reader, backpressure } = context
  const app = new Hono<AppEnv>()
  const sessions = new Sessions(config, pool, log)
  const attempts = new Attempts()
  const oidc = config.oidc && new Oidc(config.oidc)
  const semaphore = new Semaphore(MAX_STATEMENTS)
  const rates = new IngestRates(metrics)
  const caches = {
    fleet: new Cache(2_000, () => semaphore.run(() => readFleet(reader))),
    trend: new Cache(30_000, () => semaphore.run(() => readTrend(reader))),
    silence: new Cache(5_000, () => semaphore.run(() => readSilence(pool))),
    budgets: new Cache(10_000, () => semaphore.run(() => readBudgets(pool))),
    ingest: new Cache(2_000, () => rates.read()),
    partitions: new Cache(5_000, () => semaphore.run(() => readPartitions(reader))),
    checks: new Cache(10_000, () => semaphore.run(() => readChecks(pool))),
    jobs: new Cache(10_000, () => semaphore.run(() => readJobs(pool))),
    changes: new Cache(5_000, () => semaphore.run(() => readChanges(reader))),
    webhooks: new Cache(10_000, () => semaphore.run(() => readWebhooks(pool))),
  }
  const readPart = <T,>(part: string, reading: Promise<T>) => settled(part, reading, log, TIMEOUT_MS)

  serveAssets(app)
  app.post('/login', timed(metrics, 'POST /login', postLogin(config, access, sessions, attempts, log)))
  app.post('/logout', postLogout(sessions))
  if (oidc !== undefined) {
    app.get('/login/oidc', beginOidc(oidc, config, log))
    app.get('/login/oidc/callback', finishOidc(oidc, config, sessions, log))
  }
  app.get(
    '/',
    timed(
      metrics,
      'GET /',
      forSession(async (c, who) => {
        const search = searchOf(c.req.query())
        const now = new Date()
        const cohorts = cohortsOf(who)
        if (cohorts !== null) {
          const [fleet, changes, devices] = await Promise.all([
            readPart(
              'fleet',
              semaphore.run(() => readFleet(reader, cohorts)),
            ),
            readPart(
              'changes',
              semaphore.run(() => readChanges(reader, cohorts)),
            ),
            readPart(
              'devices',
              semaphore.run(() => readDevices(reader, search, cohorts)),
            ),
          ])
          const isDown = [fleet, changes, devices].every(({ error }) => error !== undefined)
          return show(
            c,
            { title: 'NexMDM fleet', status: isDown ? 503 : 200, nav: BOUND_NAV, who },
            <BoundFleet fleet={fleet} changes={changes} devices={devices} search={search} now={now} who={who} />,
          )
        }
        const [fleet, ingest, partitions, checks, jobs, devices, trend, silence, budgets, changes, webhooks] = await Promise.all([
          readPart('fleet', caches.fleet.get()),
          readPart('ingest', caches.ingest.get()),
          readPart('partitions', caches.partitions.get()),
          readPart('checks', caches.checks.get()),
          readPart('jobs', caches.jobs.get()),
          readPart(
            'devices',
            semaphore.run(() => readDevices(reader, search)),
          ),
          readPart('trend', caches.trend.get()),
          readPart('silence', caches.silence.get()),
          readPart('budgets', caches.budgets.get()),
          readPart('changes', caches.changes.get()),
          readPart('webhooks', caches.webhooks.get()),
        ])
        const isDown = [fleet, partitions, checks, jobs, devices].every(({ error }) => error !== undefined)
        const { level, text } = isDown ? { level: 'fail', text: 'The database cannot be read' } : headline(checks)
        const all = fleet.value?.[0]
        return show(
          c,
          {
            title: `${level === 'ok' ? '' : '⚠ '}${text} · NexMDM fleet`,
            status: isDown ? 503 : 200,
            nav: NAV,
            who,
          },
          <>
            <section id="headline" data-live class={`headline ${level}`} aria-label="Summary">
              <h1>
                <span aria-hidden="true">{level === 'ok' ? '✓' : '!'}</span>{' '}
                {level === 'ok' ? text : <a href="#checks">{text}</a>}
              </h1>
              {all !== undefined && ingest.value !== undefined && (
                <p>
                  {plural(all.devices, 'device')}: {all.online} online, {all.late} late, {all.offline} offline, {all.unity_down}{' '}
                  with Unity down. {short(ingest.value.per_second)} heartbeats a second.
                </p>
              )}
            </section>
            <Section id="checks" title="Checks" of={checks} show={value => <Checks checks={value} />} />
            <div class="columns">
              <Section
                id="fleet"
                title="Fleet"
                of={fleet}
                show={value => <Fleet cohorts={value} silence={silence.value} trend={trend.value} now={now} />}
              />
              <Section
                id="ingest"
                title="Ingest"
                of={ingest}
                show={value => <IngestRate ingest={value} budgets={budgets.value} />}
              />
            </div>
            <Section
              id="changes"
              title="What changed in the last hour"
              of={changes}
              show={value => <Changes changes={value} now={now} />}
            />
            <Devices devices={devices} search={search} now={now} />
            <Section
              id="partitions"
              title="Days"
              of={partitions}
              show={value => <PartitionStrip days={daysOf(value, now)} who={who} />}
            />
            <div class="columns">
              <Section id="archives" title="Archives" of={partitions} show={value => <Archives partitions={value} now={now} />} />
              <Section id="storage" title="Storage" of={partitions} show={value => <Storage partitions={value} now={now} />} />
            </div>
            <Section
              id="webhooks"
              title="Webhooks"
              of={webhooks}
              show={value => <Webhooks webhooks={value} now={now} who={who} />}
            />
            <Section id="jobs" title="Jobs" of={jobs} show={value => <Jobs jobs={value} now={now} />} />
          </>,
        )
      }),
    ),
  )

  app.get(
    '/devices/:id',
    timed(
      metrics,
      'GET /devices/:id',
      forSession(async (c, who) => {
        const id = c.req.param('id') ?? ''
        if (!/^\d{1,15}$/.test(id)) throw new Problem(404, `There is no device ${id}.`)
        const now = new Date()
        const cohorts = cohortsOf(who)
        const device = await readPart(
          'device',
          semaphore.run(() => readDevice(reader, Number(id), cohorts)),
        )
        const { error } = device
        if (error === undefined && device.value === undefined)
          throw new Problem(404, `There is no device ${id}, or its token was revoked.`)
        // Without an answer nobody knows whether this session may see the device.
        if (error !== undefined && cohorts !== null) throw unavailable(error)
        const [day, unreadable, history] = await Promise.all([
          readPart(
            'day',
            semaphore.run(() => readDay(reader, Number(id))),
          ),
          readPart(
            'unreadable fields',
            semaphore.run(() => readUnreadable(reader, Number(id))),
          ),
          readPart(
            'history',
            semaphore.run(() => readHistory(reader, Number(id), cohorts)),
          ),
        ])
        const name = device.value === undefined ? `device ${id}` : nameOf(device.value)
        return show(
          c,
          { title: `${name} · NexMDM fleet`, status: error !== undefined && day.error !== undefined ? 503 : 200, nav: BACK, who },
          <>
            <h1 class="device">{name}</h1>
            {device.value !== undefined && (
              <p class="deeds">
                <Do deed="command" who={who} device={id} /> <Do deed="token" who={who} device={id} />
              </p>
            )}
            <Section id="now" title="Now" of={device} show={value => <DeviceFacts device={value!} now={now} />} />
            {unreadable.value?.length !== 0 && (
              <Section
                id="unreadable"
                title="What it sends that cannot be read"
                of={unreadable}
                show={value => <UnreadableFields fields={value} now={now} />}
              />
            )}
            <Section
              id="day"
              title="The last 24 hours"
              of={day}
              show={value => <DeviceDay spans={value} interval_s={device.value?.interval_s ?? 60} />}
            />
            <Section id="history" title="What changed" of={history} show={value => <History changes={value} now={now} />} />
          </>,
        )
      }),
    ),
  )

  const doDeed = postDeed(config, pool, () => {
    for (const cache of Object.values(caches)) cache.clear()
  })
  app.get('/do/:deed', forSession(confirmDeed()))
  app.post('/do/:deed', timed(metrics, 'POST /do/:deed', forSession(doDeed)))

  app.get(
    '/sessions',
    forSession(async (c, who) => {
      requireScope(who, 'operate')
      const sessions = await readPart(
        'sessions',
        semaphore.run(() => readSessions(pool)),
      )
      return show(
        c,
        { title: 'Sessions · NexMDM fleet', status: 200, nav: BACK, who },
        <Section
          id="sessions"
          title="Who is logged in"
          of={sessions}
          show={value => <SessionTable sessions={value} who={who} now={new Date()} />}
        />,
      )
    }),
  )
  app.get(
    '/audit',
    forSession(async (c, who) => {
      requireScope(who, 'operate')
      const q = (c.req.query('q') ?? '').replaceAll('\0', '').trim().slice(0, 200)
      const rows = await readPart(
        'audit',
        semaphore.run(() => readAudit(pool, q)),
      )
      return show(
        c,
        { title: 'Audit log · NexMDM fleet', status: 200, nav: BACK, who },
        <Section id="audit" title="Who did what" of={rows} show={value => <AuditTable rows={value} q={q} now={new Date()} />} />,
      )
    }),
  )

  app.onError(async (error, c) => {
    const problem = toProblem(error)
    const request_id = requestId(c.env.incoming)
    const about = { event: 'http.error', request_id, method: c.req.method, path: c.req.path, status: problem.status }
    if (problem.status === 500) log.error({ ...about, error: problem.cause ?? error }, problem.message)
    else log.debug(about, problem.message)
    return answer(
      c,
      <Page title={`${problem.status} · NexMDM fleet`} isBare>
        <div class="card login">
          <h1>{toReader(problem)}</h1>
          <p>Request {request_id}</p>
          <p>
            <a href="/">Back to the fleet</a>
          </p>
        </div>
      </Page>,
      problem.status as 500,
      { 'x-request-id': request_id, ...problem.headers },
    )
  })

  /** Without a session the answer is the login form. A poll gets 401 instead, and 503 under backpressure. */
  function forSession(handler: (c: Context<AppEnv>, who: Principal) => Promise<Response>): Handler<AppEnv> {
    return async c => {
      const who = await sessions.principal(c)
      if (who === undefined) {
        if (isPoll(c)) throw new Problem(401, 'The session has ended.')
        if (comesFromElsewhere(c)) return answer(c, <Again />)
        const { pathname, search } = new URL(c.req.url)
        return answer(c, <Login next={localPath(pathname + search)} provider={oidc?.host} />)
      }
      if (isPoll(c) && backpressure.sheds('page'))
        throw unavailable('The server is busy with heartbeats, so this page is paused.')
      requireScope(who, 'read')
      c.set('principal', who)
      return handler(c, who)
    }
  }

  return app
}

interface Shown {
  title: string
  status: 200 | 503
  nav: Child
  who: Principal
}

/** The whole page, or only its parts for a poll. */
async function show(c: Context<AppEnv>, { title, status, nav, who }: Shown, body: Html) {
  const headers: Record<string, string> = status === 503 ? { 'retry-after': '5' } : {}
  if (isPoll(c))
    return answer(
      c,
      <>
        <title>{title}</title>
        {body}
      </>,
      status,
      headers,
    )
  return answer(
    c,
    <Page title={title} nav={nav} who={who}>
      {body}
    </Page>,
    status,
    headers,
  )
}

function isPoll(c: Context<AppEnv>) {
  return c.env.incoming.headers['x-live'] !== undefined
}

/** True for a link in a chat or an alert: the browser then leaves out a SameSite=Strict cookie. */
function comesFromElsewhere(c: Context<AppEnv>) {
  return c.env.incoming.headers['sec-fetch-site'] === 'cross-site'
}

/** Loads the same page once more, now from our own site, so that the browser sends the cookie. */
function Again() {
  return (
    <html lang="en">
      <head>
        <title>NexMDM fleet</title>
        <meta http-equiv="refresh" content="0" />
      </head>
    </html>
  )
}

const NAV = (
  <nav aria-label="On this page">
    <ul>
      {['fleet', 'changes', 'devices', 'partitions', 'archives', 'storage', 'webhooks', 'jobs', 'checks'].map(part => (
        <li>
          <a href={`#${part}`}>{part === 'partitions' ? 'Days' : part[0]!.toUpperCase() + part.slice(1)}</a>
        </li>
      ))}
    </ul>
  </nav>
)

const BOUND_NAV = (
  <nav aria-label="On this page">
    <ul>
      {['fleet', 'changes', 'devices'].map(part => (
        <li>
          <a href={`#${part}`}>{part[0]!.toUpperCase() + part.slice(1)}</a>
        </li>
      ))}
    </ul>
  </nav>
)

const BACK = (
  <nav aria-label="Back">
    <ul>
      <li>
        <a href="/">All devices</a>
      </li>
    </ul>
  </nav>
)
