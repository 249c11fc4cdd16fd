// An app with automerge-repo, as its packages come: `node client.mjs ws://HOST/v1/_sync/NAMESPACE`.
// Commands come as JSON, one a line; each is answered by a line of JSON. tests/server/sync.rs gives them.
import { createInterface } from "node:readline"
import { Repo } from "@automerge/automerge-repo"
import { WebSocketClientAdapter } from "@automerge/automerge-repo-network-websocket"
import { next as Automerge } from "@automerge/automerge"

const RETRY_MS = 200
const repo = new Repo({ network: [new WebSocketClientAdapter(process.argv[2], RETRY_MS)] })
const handles = new Map()
const heard = new Map()

const keep = handle => {
  handles.set(handle.url, handle)
  heard.set(handle.url, [])
  handle.on("ephemeral-message", ({ message }) => heard.get(handle.url).push(message))
  return handle
}

// Resolves once it holds, whenever something comes.
const until = (handle, event, holds) =>
  new Promise(resolve => {
    const look = () => {
      const value = holds()
      if (value === undefined) return
      handle.off(event, look)
      resolve(value)
    }
    handle.on(event, look)
    look()
  })

const commands = {
  create: ({ doc }) => ({ url: keep(repo.create(doc)).url }),
  // Whether it is there.
  open: async ({ url }) => {
    try {
      return { doc: keep(await repo.find(url)).doc() }
    } catch (error) {
      return { unavailable: String(error.message) }
    }
  },
  set: ({ url, key, value }) => {
    handles.get(url).change(doc => { doc[key] = value })
    return {}
  },
  // Positions are those of JavaScript, in UTF-16.
  splice: ({ url, key, index, remove, insert }) => {
    handles.get(url).change(doc => Automerge.splice(doc, [key], index, remove, insert))
    return {}
  },
  doc: ({ url }) => ({ doc: handles.get(url).doc(), heads: Automerge.getHeads(handles.get(url).doc()).sort() }),
  until: ({ url, key, value }) => {
    const handle = handles.get(url)
    const holds = () => (JSON.stringify(handle.doc()?.[key]) === JSON.stringify(value) ? {} : undefined)
    return until(handle, "change", holds)
  },
  untilHeads: ({ url, heads }) => {
    const handle = handles.get(url)
    const holds = () => {
      const now = Automerge.getHeads(handle.doc()).sort()
      return JSON.stringify(now) === JSON.stringify(heads) ? { doc: handle.doc() } : undefined
    }
    return until(handle, "change", holds)
  },
  say: ({ url, message }) => {
    handles.get(url).broadcast(message)
    return {}
  },
  hear: ({ url }) => until(handles.get(url), "ephemeral-message", () => heard.get(url).shift()).then(said => ({ said })),
}

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line)
  const answer = await commands[command.do](command)
  process.stdout.write(JSON.stringify(answer) + "\n")
}
process.exit(0)
