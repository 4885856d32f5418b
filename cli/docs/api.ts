// Makes docs/api.md: the calls of the server, from the document that GET /openapi.json returns.
import { openapi } from '../../server/openapi/document.ts'
import { anchor, block, code, generated, page, table } from './markdown.ts'

interface Schema {
  $ref?: string
  type?: string | string[]
  description?: string
  format?: string
  pattern?: string
  enum?: (string | null)[]
  const?: string
  default?: string | number
  minimum?: number
  exclusiveMinimum?: number
  maximum?: number
  minLength?: number
  maxLength?: number
  maxItems?: number
  anyOf?: Schema[]
  items?: Schema
  properties?: Record<string, Schema>
  required?: string[]
}

interface Media {
  schema: Schema
  example?: unknown
  examples?: Record<string, { summary?: string; value: unknown }>
}
interface Response {
  description: string
  headers?: Record<string, { description: string }>
  content?: Record<string, Media>
}

interface Parameter {
  name: string
  in: 'query' | 'path' | 'header'
  required?: boolean
  description: string
  schema: Schema
  example?: unknown
}

interface Operation {
  tags: string[]
  summary: string
  description?: string
  security: Record<string, []>[]
  parameters?: Parameter[]
  requestBody?: { content: Record<string, Media> }
  responses: Record<string, Response | { $ref: string }>
}

interface Components {
  schemas: Record<string, Schema>
  responses: Record<string, Response>
  securitySchemes: Record<string, { type: 'http' | 'apiKey'; name?: string; description: string }>
}

interface Call {
  path: string
  method: string
  operation: Operation
}

interface Caller {
  title: string
  about: string
  /** Whether these callers may make this call. */
  calls: (operation: Operation) => boolean
  /** The security scheme that they use; the shell variable with the token or key is in CREDENTIALS. */
  scheme?: string
}

const CALLERS: Caller[] = [
  {
    title: 'Devices',
    scheme: 'device',
    about: 'A device sends its heartbeats and fetches its commands, with its own token.',
    calls: ({ security }) => security.some(scheme => 'device' in scheme),
  },
  {
    title: 'Gateways',
    scheme: 'gateway',
    about: 'A gateway sends heartbeats of many devices with one token.',
    calls: ({ security }) => security.some(scheme => 'gateway' in scheme),
  },
  {
    title: 'Admin',
    scheme: 'admin',
    about: 'People and programs that manage devices.',
    calls: ({ tags, security }) => !isOf(tags, 'operations', 'probes') && security.some(scheme => 'admin' in scheme),
  },
  {
    title: 'Ops',
    scheme: 'admin',
    about: 'Maintenance by hand.',
    calls: ({ tags }) => isOf(tags, 'operations'),
  },
  {
    title: 'Monitoring',
    scheme: 'adminBearer',
    about: 'Load balancers, Prometheus and tools. Only the metrics need a key.',
    calls: ({ tags }) => isOf(tags, 'probes'),
  },
]

const CREDENTIALS: Record<string, string> = {
  device: 'authorization: Bearer $TOKEN',
  gateway: 'authorization: Bearer $GATEWAY_TOKEN',
  admin: 'x-admin: $ADMIN_KEY',
  adminBearer: 'authorization: Bearer $ADMIN_KEY',
}

const VARIABLES = `
URL=http://127.0.0.1:8080
TOKEN=nxd_…          # of a device
GATEWAY_TOKEN=nxg_…  # of a gateway
ADMIN_KEY=…
`.trim()

const isOf = (tags: string[], ...names: string[]) => tags.some(tag => names.includes(tag))

export function apiPage() {
  const document = JSON.parse(JSON.stringify(openapi())) as ReturnType<typeof openapi>
  const { schemas, responses, securitySchemes } = document.components as unknown as Components
  const paths = document.paths as unknown as Record<string, Record<string, Operation>>
  const calls: Call[] = Object.entries(paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => ({ path, method: method.toUpperCase(), operation })),
  )
  const sections = CALLERS.map(caller => ({ caller, calls: calls.filter(({ operation }) => caller.calls(operation)) }))
  const left = calls.filter(call => !sections.some(section => section.calls.includes(call)))
  if (left.length > 0) throw new Error(`no section of docs/api.md has ${left.map(title).join(', ')}`)

  /** Resolves a reference to a schema. */
  function resolve(schema: Schema): Schema {
    return schema.$ref === undefined ? schema : schemas[nameOf(schema.$ref)]!
  }

  /** A row for each field, including those of nested objects: `devices[].alias`. */
  function fieldRows(schema: Schema, prefix = '', shown: 'in' | 'out' = 'out'): string[][] {
    const { properties = {}, required = [], items } = resolve(schema)
    if (items !== undefined) return fieldRows(items, `${prefix}[]`, shown)
    return Object.entries(properties).flatMap(([name, field]) => {
      const path = prefix === '' ? name : `${prefix}.${name}`
      const inner = resolve(field)
      const mark = required.includes(name) === (shown === 'in') ? 'yes' : ''
      return [[code(path), describe(inner), mark, field.description ?? inner.description ?? ''], ...fieldRows(field, path, shown)]
    })
  }

  function requestBody({ requestBody }: Operation, { scheme }: Caller) {
    return Object.entries(requestBody?.content ?? {}).map(([type, { schema }]) => {
      const { anyOf, description } = resolve(schema.items ?? schema)
      // A batch contains items of devices or of gateways.
      const own = anyOf?.find(({ $ref = '' }) =>
        nameOf($ref)
          .toLowerCase()
          .startsWith(scheme ?? ''),
      )
      const item = own ?? schema.items ?? schema
      const rows = fieldRows(item, '', 'in')
      const limit = schema.items && `An array of at most ${schema.maxItems} items.`
      const about = [limit, resolve(item).description ?? description].filter(Boolean)
      return page(
        `**Body** as \`${type}\`. ${about.join(' ')}`.trim(),
        rows.length === 0 ? undefined : table(['field', 'type and limits', 'required', 'what it is'], rows),
      ).trimEnd()
    })
  }

  function answers({ responses: given }: Operation) {
    const own = Object.entries(given).flatMap(([status, response]) => ('$ref' in response ? [] : [{ status, ...response }]))
    const errors = Object.entries(given).flatMap(([status, response]) => ('$ref' in response ? [errorTitle(status)] : []))
    const media = own.flatMap(({ content = {} }) => Object.entries(content).map(([type, { schema }]) => ({ type, schema })))
    const fields = [...new Set(media.map(({ schema }) => resolve(schema)))].flatMap(schema => fieldRows(schema))
    return [
      table(
        ['status', 'meaning', 'headers'],
        own.map(({ status, description, headers = {} }) => [status, description, Object.keys(headers).map(code).join(', ')]),
      ),
      errors.length === 0 ? undefined : `Errors: ${errors.map(title => `[${title}](#${anchor(title)})`).join(', ')}.`,
      ...media
        .filter(({ type, schema }) => type !== 'application/json' && schema.description)
        .map(({ type, schema }) => `As \`${type}\`: ${schema.description}`),
      ...(fields.length === 0
        ? []
        : ['Fields of the answer:', table(['field', 'type and limits', 'optional', 'what it is'], fields)]),
    ]
  }

  /** The examples in the document, each with its answer. */
  function examples(call: Call, { scheme }: Caller) {
    const { requestBody, responses: given, security } = call.operation
    const answers = Object.entries(given).flatMap(([status, response]) => {
      const media = '$ref' in response ? [] : Object.values(response.content ?? {})
      return media.flatMap(({ example, examples = {} }) => [
        ...Object.entries(examples).map(([name, { value }]) => ({ status, name, value })),
        ...(example === undefined ? [] : [{ status, name: '', value: example }]),
      ])
    })
    const requests = Object.entries(requestBody?.content ?? {}).flatMap(([type, { examples = {} }]) =>
      Object.entries(examples).map(([name, { summary, value }]) => ({ type, name, summary, value })),
    )
    const needed = security.find(one => (scheme ?? '') in one) ?? security[0] ?? {}
    const credential = CREDENTIALS[Object.keys(needed)[0] ?? '']
    const pairs =
      requests.length === 0
        ? [{ summary: undefined, type: '', value: undefined, answer: answers[0] }]
        : requests
            .filter(({ name }) => (name === 'gateway') === (scheme === 'gateway'))
            .map(request => ({ ...request, answer: answers.find(({ name }) => name === request.name) }))
            .sort((a, b) => rank(a.answer?.status) - rank(b.answer?.status))
    return pairs.map(({ summary, type, value, answer }) =>
      page(
        summary === undefined ? undefined : `${summary}:`,
        block('sh', curl(call, credential, type, value)),
        answer === undefined ? undefined : `answers ${answer.status}:`,
        answer === undefined ? undefined : block(typeof answer.value === 'string' ? 'text' : 'json', answer.value),
      ).trimEnd(),
    )
  }

  function section(caller: Caller, call: Call) {
    const { summary, description, parameters = [], security } = call.operation
    const auth = security.flatMap(Object.keys).map(name => {
      const { type, name: header, description } = securitySchemes[name]!
      return `${code(type === 'http' ? 'Authorization: Bearer' : header!)}: ${description.replace(/\.$/, '')}`
    })
    return page(
      `### ${heading(caller, call)}`,
      `${summary}. ${description ?? ''}`.trim(),
      `**Auth**: ${auth.join('; or ') || 'none'}.`,
      parameters.length === 0
        ? undefined
        : table(
            ['parameter', 'in', 'type and limits', 'required', 'what it is'],
            parameters.map(({ name, in: place, schema, required, description }) => [
              code(name),
              place,
              describe(schema),
              required ? 'yes' : '',
              description,
            ]),
          ),
      ...requestBody(call.operation, caller),
      ...examples(call, caller),
      ...answers(call.operation),
    ).trimEnd()
  }

  return page(
    '# HTTP API',
    generated('the schemas of `GET /openapi.json`'),
    document.info.description,
    'The examples are for a shell with these variables:',
    block('sh', VARIABLES),
    table(
      ['caller', 'call', 'what it does'],
      sections.flatMap(({ caller, calls }) =>
        calls.map((call, index) => [
          index === 0 ? `[${caller.title}](#${anchor(caller.title)})` : '',
          `[${title(call)}](#${anchor(heading(caller, call))})`,
          call.operation.summary,
        ]),
      ),
    ),
    ...sections.flatMap(({ caller, calls }) => [`## ${caller.title}`, caller.about, ...calls.map(call => section(caller, call))]),
    '## Errors',
    'The body of an error is `application/problem+json`:',
    table(['field', 'type and limits', 'optional', 'what it is'], fieldRows(schemas.Problem!)),
    ...Object.entries(responses).flatMap(([status, { description, headers = {}, content = {} }]) => [
      `### ${errorTitle(status)}`,
      `${description} Headers: ${Object.keys(headers).map(code).join(', ')}.`,
      ...Object.values(content).map(({ example }) => block('json', example)),
    ]),
  )

  function errorTitle(status: string) {
    const example = Object.values(responses[status]!.content ?? {})[0]?.example as { title: string }
    return `${status} ${example.title}`
  }
}

function title({ method, path }: Call) {
  return `${method} ${path}`
}

/** A call that two kinds of callers make has two sections. */
function heading({ scheme }: Caller, call: Call) {
  return scheme === 'gateway' ? `${title(call)} of a gateway` : title(call)
}

/** The order of answers: first stored, then already there, then the rest. */
function rank(status = '') {
  return ['201', '200'].indexOf(status) + 1 || 3
}

function nameOf(ref: string) {
  return ref.split('/').at(-1)!
}

/** The type of a value and its limits, in words. */
function describe(schema: Schema): string {
  const { type, anyOf, format, pattern, minimum, exclusiveMinimum, maximum, minLength, maxLength, default: fallback } = schema
  if (anyOf !== undefined) return anyOf.map(describe).join(', or ')
  if (schema.const !== undefined) return `always ${code(schema.const)}`
  const end = fallback === undefined ? '' : `; default ${code(String(fallback))}`
  if (schema.enum !== undefined) return `${schema.enum.map(word => (word === null ? 'null' : code(word))).join(', ')}${end}`
  if (type === undefined) return 'any JSON'
  return (
    [type]
      .flat()
      .map(one => {
        const lowest = minimum ?? (exclusiveMinimum === undefined ? undefined : exclusiveMinimum + 1)
        // 2^53 is the limit of every whole number in JSON, so it is not shown.
        const highest = maximum === Number.MAX_SAFE_INTEGER ? undefined : maximum
        switch (one) {
          case 'integer':
          case 'number': {
            const name = one === 'integer' ? 'whole number' : 'number'
            if (highest !== undefined) return `${name}, ${lowest} to ${highest}`
            return lowest === undefined || lowest < 0 ? name : `${name}, ${lowest} or more`
          }
          case 'string': {
            if (format === 'date-time') return 'time (RFC 3339)'
            const from = minLength === undefined ? 'at most' : `${minLength} to`
            if (maxLength !== undefined) return `text, ${from} ${maxLength} characters`
            return pattern === undefined ? 'text' : `text that matches ${code(pattern)}`
          }
          case 'boolean':
            return 'true or false'
          case 'array':
            return 'array'
          case 'object':
            return 'object'
          default:
            return one
        }
      })
      .join(', or ') + end
  )
}

function curl({ path, method, operation }: Call, credential: string | undefined, type: string, value: unknown) {
  const parameters = operation.parameters ?? []
  const target = parameters
    .filter(parameter => parameter.in === 'path')
    .reduce((target, { name, example }) => target.replace(`{${name}}`, String(example)), path)
  // One parameter is enough as an example. All of them together would find nothing.
  const [first] = parameters.filter(parameter => parameter.in === 'query')
  const query = first === undefined ? '' : `?${first.name}=${String(first.example)}`
  const parts = [
    `curl ${method === 'GET' ? '' : `-X ${method} `}"$URL${target}${query}"`,
    credential && `-H "${credential}"`,
    value !== undefined && `-H 'content-type: ${type}'`,
    value !== undefined && `--data-binary ${shellText(typeof value === 'string' ? value : JSON.stringify(value))}`,
  ]
  return parts.filter(Boolean).join(' \\\n  ')
}

function shellText(text: string) {
  return `'${text.replaceAll("'", "'\\''")}'`
}
