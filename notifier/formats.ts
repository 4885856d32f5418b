// Writes a message in the format of its webhook. What comes from devices and people, such as an alias, is quoted wherever the
// receiver would read it as markup.

/** The body of a message as the database makes it, in version 1; see docs/webhooks.md. */
export interface Body {
  type: string
  version: number
  timestamp: string
  data: {
    kind: 'first' | 'change' | 'reminder' | 'recovery' | 'test' | 'replay'
    /** What a replay was: first or recovery. */
    replay_of?: 'first' | 'recovery'
    event?: string
    first_id?: string | null
    reminder?: number
    began_at?: string
    webhook?: string
    device?: { id: number; alias: string | null; cohort: string }
    reason?: string | null
    battery_pct?: number | null
    network_type?: string | null
    agent_version?: string | null
    subject?: string
    devices?: number
  }
}

export const FORMATS = ['json', 'slack', 'teams', 'ntfy', 'alertmanager'] as const
export type Format = (typeof FORMATS)[number]

export interface Rendered {
  url: URL
  text: string
}

/** An Alertmanager ends an alert by itself after its resolve_timeout, unless it is told when the alert ends. */
const ALERT_ENDS_MS = 365 * 86_400_000

/**
 * @param url where the webhook sends
 * @param now the time of this attempt
 */
export function render(body: Body, format: Format, url: string, now = new Date()): Rendered {
  const to = new URL(url)
  switch (format) {
    case 'json':
      return { url: to, text: JSON.stringify(body) }
    case 'slack':
      return { url: to, text: JSON.stringify({ text: slackText(describe(body)) }) }
    case 'teams':
      return { url: to, text: JSON.stringify(teamsCard(describe(body))) }
    case 'ntfy':
      return ntfy(describe(body), to)
    case 'alertmanager':
      if (to.pathname === '/') to.pathname = '/api/v2/alerts'
      return { url: to, text: JSON.stringify([alert(body, now)]) }
  }
}

export interface Description {
  title: string
  lines: string[]
  /** Whether something is wrong, as opposed to over, new or a test. */
  isTrouble: boolean
}

const TROUBLES: Record<string, string> = {
  late: 'is late',
  offline: 'is offline',
  clock_skewed: 'has a wrong clock',
  unity_down: 'sends, but its app is down',
}
const NEWS: Record<string, string> = { online: 'is online', back: 'is back', revoked: 'was revoked' }
const INCIDENTS: Record<string, (subject: string) => string> = {
  cohort_silent: subject => `Cohort ${subject} fell silent`,
  network_silent: subject => `Network ${subject} fell silent`,
  ingest_down: () => 'No heartbeats could be stored',
}
const REASONS: Record<string, string> = {
  ingest_down: 'heartbeats could not be stored',
  cohort_silent: 'its cohort fell silent',
  network_silent: 'its network fell silent',
  shutdown: 'it was shut down',
  reboot: 'it rebooted',
  update: 'it was updating',
  app: 'its agent was stopped',
  sleep: 'it slept',
  battery: 'its battery was empty',
  signal: 'it had no signal',
}

/** A message for people. */
export function describe({ timestamp, data }: Body): Description {
  const isOver = data.kind === 'recovery' || data.replay_of === 'recovery'
  const event = data.event ?? ''
  const lines: string[] = []
  let title: string
  let isTrouble = false
  if (data.kind === 'test') {
    title = `Test of the webhook ${data.webhook ?? ''}`
    lines.push('If you can read this, messages arrive.')
  } else if (data.device) {
    const { id, alias, cohort } = data.device
    isTrouble = !isOver && event in TROUBLES
    const verb = TROUBLES[event] ?? NEWS[event] ?? event
    const still = data.kind === 'reminder' ? verb.replace(/^(is|has) /, '$1 still ').replace(/^sends/, 'still sends') : verb
    title = `${alias ?? `Device ${id}`} ${still}`
    lines.push(`Cohort ${cohort}, ${isTrouble ? 'since' : 'at'} ${minute(isTrouble ? data.began_at : timestamp)}`)
    if (isOver && data.began_at) lines.push(`It lasted ${duration(data.began_at, timestamp)}`)
    if (data.reason && REASONS[data.reason]) lines.push(`Reason: ${REASONS[data.reason]}`)
    if (isTrouble && data.battery_pct != null) lines.push(`Battery ${data.battery_pct} %`)
  } else {
    isTrouble = !isOver
    const name = INCIDENTS[event]?.(data.subject ?? '') ?? event
    title = isOver ? `Over: ${lower(name)}` : data.kind === 'reminder' ? `Still: ${lower(name)}` : name
    if (data.devices) lines.push(data.devices === 1 ? '1 device' : `${data.devices} devices`)
    lines.push(`Since ${minute(data.began_at)}`)
    if (isOver && data.began_at) lines.push(`It lasted ${duration(data.began_at, timestamp)}`)
  }
  if (data.kind === 'reminder') lines.push(`Reminder ${data.reminder ?? ''}`)
  if (data.kind === 'replay') lines.push(`Sent again; it happened at ${minute(timestamp)}`)
  return { title, lines, isTrouble }
}

function lower(text: string) {
  return text.charAt(0).toLowerCase() + text.slice(1)
}

/** `2026-11-29 18:04 UTC` */
function minute(time = '') {
  return `${time.slice(0, 16).replace('T', ' ')} UTC`
}

function duration(from: string, to: string) {
  const minutes = Math.max(0, Math.round((Date.parse(to) - Date.parse(from)) / 60_000))
  if (minutes < 120) return `${minutes} min`
  if (minutes < 48 * 60) return `${Math.round(minutes / 60)} h`
  return `${Math.round(minutes / 1440)} days`
}

function slackText({ title, lines, isTrouble }: Description) {
  // These three are all that Slack reads as more than text: <!channel> would call everybody, <https://…|text> be a link.
  const quote = (text: string) => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;')
  return [`${isTrouble ? ':red_circle:' : ':large_green_circle:'} ${quote(title)}`, ...lines.map(quote)].join('\n')
}

/** For an incoming webhook of Workflows. Runs of a RichTextBlock are plain text; a TextBlock would read Markdown. */
function teamsCard({ title, lines, isTrouble }: Description) {
  const block = (text: string, style: object) => ({ type: 'RichTextBlock', inlines: [{ type: 'TextRun', text, ...style }] })
  return {
    type: 'message',
    attachments: [
      {
        contentType: 'application/vnd.microsoft.card.adaptive',
        contentUrl: null,
        content: {
          $schema: 'http://adaptivecards.io/schemas/adaptive-card.json',
          type: 'AdaptiveCard',
          version: '1.4',
          body: [
            block(title, { weight: 'Bolder', size: 'Medium', color: isTrouble ? 'Attention' : 'Good' }),
            ...lines.map(line => block(line, {})),
          ],
        },
      },
    ],
  }
}

/** As JSON to the root of the server, because the headers of ntfy's other form carry only ASCII. */
function ntfy({ title, lines, isTrouble }: Description, url: URL): Rendered {
  const topic = decodeURIComponent(url.pathname.replaceAll('/', ''))
  const to = new URL(url)
  to.pathname = '/'
  const message = lines.join('\n')
  return {
    url: to,
    text: JSON.stringify({
      topic,
      title,
      message,
      priority: isTrouble ? 4 : 3,
      tags: [isTrouble ? 'warning' : 'white_check_mark'],
    }),
  }
}

const ALERTS: Record<string, string> = {
  cohort_silent: 'CohortSilent',
  network_silent: 'NetworkSilent',
  ingest_down: 'IngestDown',
}

/**
 * One alert for a device, whatever its trouble is. Its labels are only what cannot change while the trouble lasts: with others, such
 * as a new alias, the recovery would end another alert, and this one would stay.
 */
function alert(body: Body, now: Date) {
  const { data, timestamp } = body
  const { title, lines, isTrouble } = describe(body)
  const isTest = data.kind === 'test'
  const labels: Record<string, string> = isTest
    ? { alertname: 'WebhookTest', severity: 'info', webhook: data.webhook ?? '' }
    : data.device
      ? { alertname: 'DeviceTrouble', severity: 'warning', device_id: String(data.device.id) }
      : { alertname: ALERTS[data.event ?? ''] ?? 'Incident', severity: 'critical', subject: data.subject ?? '' }
  const ends = isTest ? now.getTime() + 300_000 : isTrouble ? now.getTime() + ALERT_ENDS_MS : now.getTime()
  return {
    labels,
    annotations: {
      summary: title,
      description: lines.join('\n'),
      ...(data.device
        ? { device: data.device.alias ?? String(data.device.id), cohort: data.device.cohort, event: data.event ?? '' }
        : {}),
    },
    startsAt: new Date(Math.min(Date.parse(data.began_at ?? timestamp), now.getTime())).toISOString(),
    endsAt: new Date(ends).toISOString(),
  }
}
