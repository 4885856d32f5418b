/** The values that postgres.js supports. Its read-write also accepts a standby, which refuses writes, so it is not listed. */
const SESSION_ATTRS = ['primary', 'standby', 'prefer-standby']
const LIST = /^[^\s:/?#[\]@,]+(:\d{1,5})?(,[^\s:/?#[\]@,]+(:\d{1,5})?)+$/

/**
 * Why a text is not the URL of a database: the end of a sentence that begins with the setting's name. Undefined if it is one.
 * The URL may name several hosts, `host1:5432,host2:5432`. The first that answers is used; with target_session_attrs, the first
 * that answers and fits. The message does not repeat the text, which may contain a password.
 */
export function databaseUrlProblem(text: string): string | undefined {
  const [, hosts] = /^postgres(?:ql)?:\/\/(?:[^/?]*@)?([^/?]*)/.exec(text) ?? []
  if (hosts === undefined) return 'must be a URL that begins with postgres://.'
  if (hosts.includes(',') && !LIST.test(hosts)) {
    return 'must list its hosts as host1:port,host2:port. Each is a name or an IPv4 address; the port is optional.'
  }
  const url = firstHost(text)
  if (url === undefined) return 'must be a URL such as postgres://user:password@host:5432/database.'
  const attrs = url.searchParams.get('target_session_attrs')
  if (attrs !== null && !SESSION_ATTRS.includes(attrs)) {
    return `must have a target_session_attrs of ${SESSION_ATTRS.join(', ')}, or none. Use primary instead of read-write.`
  }
  if (![null, 'true', 'false'].includes(url.searchParams.get('prepare'))) {
    return 'must have prepare=false (for pgBouncer before 1.21), prepare=true or neither.'
  }
  return undefined
}

/** The URL with only the first of its hosts, because the URL class accepts one. */
function firstHost(text: string) {
  const one = text.replace(/^(postgres(?:ql)?:\/\/(?:[^/?]*@)?[^/?,]*)[^/?]*/, '$1')
  return URL.canParse(one) ? new URL(one) : undefined
}
