// Keeps the live parts up to date while the page is visible.
const every = +document.body.dataset.every
const line = document.getElementById('live')
const FOCUS = 'a, summary, [tabindex]'
let timer, asking

// Screen readers read changes aloud.
function say(text, isBad) {
  if (line.textContent !== text) line.textContent = text
  line.className = isBad ? 'warn' : ''
}

function replace(old, fresh) {
  const all = (box, what) => [...box.querySelectorAll(what)]
  // Somebody has selected text in it.
  const chosen = getSelection()
  if (!chosen.isCollapsed && old.contains(chosen.anchorNode)) return
  for (const { id } of all(old, 'details[open]')) fresh.querySelector('#' + id)?.setAttribute('open', '')
  if (fresh.outerHTML === old.outerHTML) return
  const at = all(old, FOCUS).indexOf(document.activeElement)
  const scrolled = all(old, '.scroll').map(box => [box.scrollLeft, box.scrollTop])
  old.replaceWith(fresh)
  all(fresh, '.scroll').forEach((box, n) => box.scrollTo(...(scrolled[n] ?? [0, 0])))
  all(fresh, FOCUS)[at]?.focus({ preventScroll: true })
}

async function refresh() {
  clearTimeout(timer)
  if (document.hidden || asking) return
  asking = true
  let wait = every
  try {
    const answer = await fetch(location.href, { headers: { 'x-live': '1' }, signal: AbortSignal.timeout(1e4) })
    if (answer.status === 401) return location.reload()
    const news = new DOMParser().parseFromString(await answer.text(), 'text/html')
    if (news.querySelector('[data-live]')) {
      for (const old of document.querySelectorAll('[data-live]')) replace(old, news.getElementById(old.id) ?? old)
      document.title = news.title
      say('Live')
    } else {
      wait = 1e3 * (answer.headers.get('retry-after') || 5)
      say(news.querySelector('h1')?.textContent ?? 'Status ' + answer.status, 1)
    }
  } catch {
    say('Not live: the server cannot be reached', 1)
  }
  asking = false
  timer = setTimeout(refresh, wait)
}

document.addEventListener('visibilitychange', refresh)
timer = setTimeout(refresh, every)
