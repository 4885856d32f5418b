import type { Attributes, Context, Span, TextMapGetter } from '@opentelemetry/api'
import type { HttpBindings } from '@hono/node-server'
import type { MiddlewareHandler } from 'hono'
import { routePath } from 'hono/route'
import type { IncomingHttpHeaders } from 'node:http'
import type { Log } from './log.ts'
import { version } from './version.ts'
import { withTimeout } from './timeout.ts'

export type Tracing = Awaited<ReturnType<typeof loadTracing>>

/** As many as a batch may have requests. */
const MAX_LINKS = 1_000
/** A receiver that is away must not hold up the end of the process. */
const SHUTDOWN_MS = 3_000
const QUIET_MS = 60_000

/** Undefined when no endpoint is set: then nothing of OpenTelemetry is loaded. */
export function startTracing(endpoint: string | undefined, service: string, log: Log): Promise<Tracing> | undefined {
  return endpoint === undefined ? undefined : loadTracing(service, log)
}

/** OpenTelemetry reads its settings (OTEL_*) itself, as the AWS SDK does. */
async function loadTracing(serviceName: string, log: Log) {
  const { context, diag, DiagLogLevel, propagation, ROOT_CONTEXT, SpanKind, SpanStatusCode, trace } =
    await import('@opentelemetry/api')
  const { OTLPTraceExporter } = await import('@opentelemetry/exporter-trace-otlp-http')
  const { detectResources, envDetector, resourceFromAttributes } = await import('@opentelemetry/resources')
  const { BatchSpanProcessor, NodeTracerProvider } = await import('@opentelemetry/sdk-trace-node')

  diag.setLogger(quietly(log), DiagLogLevel.WARN)
  const provider = new NodeTracerProvider({
    // OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES come last, and win.
    resource: resourceFromAttributes({
      'service.name': serviceName,
      'service.version': version,
      'process.pid': process.pid,
    }).merge(detectResources({ detectors: [envDetector] })),
    spanLimits: { linkCountLimit: MAX_LINKS },
    spanProcessors: [new BatchSpanProcessor(new OTLPTraceExporter())],
  })
  // The W3C's traceparent, and a context that follows promises.
  provider.register()
  const tracer = trace.getTracer('nexmdm', version)
  const headersGetter: TextMapGetter<IncomingHttpHeaders> = {
    get: (headers, key) => headers[key],
    keys: headers => Object.keys(headers),
  }

  function fail(span: Span, error: unknown) {
    // Its message may quote what a caller wrote; the log has it, which takes tokens out.
    const { code, name } = error as { code?: string; name?: string }
    span.setAttribute('error.type', code ?? name ?? 'unknown')
    span.setStatus({ code: SpanStatusCode.ERROR })
  }

  /** A span around work that finds it as its context. */
  async function inSpan<T>(span: Span, parent: Context, work: (span: Span) => Promise<T>): Promise<T> {
    try {
      return await context.with(trace.setSpan(parent, span), () => work(span))
    } catch (error) {
      fail(span, error)
      throw error
    } finally {
      span.end()
    }
  }

  /** Each request, also those that find no route. */
  const request: MiddlewareHandler<{ Bindings: HttpBindings }> = async (c, next) => {
    const { method, headers } = c.env.incoming
    const parent = propagation.extract(ROOT_CONTEXT, headers, headersGetter)
    const attributes = { 'http.request.method': method ?? '', 'url.scheme': 'http' }
    const span = tracer.startSpan(method ?? 'HTTP', { kind: SpanKind.SERVER, attributes }, parent)
    await inSpan(span, parent, async () => {
      await next()
      const route = routePath(c, -1)
      if (route !== '/*') {
        span.updateName(`${method} ${route}`)
        span.setAttribute('http.route', route)
      }
      span.setAttribute('http.response.status_code', c.res.status)
      if (c.res.status >= 500) span.setStatus({ code: SpanStatusCode.ERROR })
    })
  }

  function step<T>(this: void, name: string, attributes: Attributes, work: () => Promise<T>) {
    const parent = context.active()
    return inSpan(tracer.startSpan(name, { attributes }, parent), parent, work)
  }

  return {
    request,

    /** What a heartbeat that waits for its batch keeps, so that the batch can name its request. */
    current: () => trace.getActiveSpan(),

    /** A batch belongs to the request that came first, and names the others by links. */
    batch<T>(requests: (Span | undefined)[], attributes: Attributes, work: () => Promise<T>) {
      const [first, ...others] = requests.filter(span => span !== undefined)
      const parent = first === undefined ? ROOT_CONTEXT : trace.setSpan(ROOT_CONTEXT, first)
      const links = others.map(span => ({ context: span.spanContext() }))
      return inSpan(tracer.startSpan('heartbeat batch', { attributes, links }, parent), parent, work)
    },

    /** One statement. */
    statement<T>(procedure: string, attributes: Attributes, work: () => Promise<T>) {
      const parent = context.active()
      const span = tracer.startSpan(
        procedure,
        {
          kind: SpanKind.CLIENT,
          attributes: { 'db.system.name': 'postgresql', 'db.stored_procedure.name': procedure, ...attributes },
        },
        parent,
      )
      return inSpan(span, parent, work)
    },

    /** Anything else that takes its time. */
    step,

    /** Sends what is left. */
    async stop() {
      await withTimeout(SHUTDOWN_MS, provider.shutdown()).catch(() => {})
    },
  }
}

/** A receiver that is away is worth a line a minute. */
function quietly(log: Log) {
  let until = 0
  const warn = (message: string) => {
    if (Date.now() < until) return
    until = Date.now() + QUIET_MS
    log.warn({ event: 'tracing.failed', error: message }, 'Spans are lost; nothing else is.')
  }
  return { error: warn, warn, info: () => {}, debug: () => {}, verbose: () => {} }
}
