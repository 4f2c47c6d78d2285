-- The load, for wrk: POST /identify with the customers of one workload; prints the figures as JSON.
--
--     wrk -t1 ... -s identify.lua http://127.0.0.1:PORT/identify -- WORKLOAD SPACE FIRST KNOWN
--
-- WORKLOAD  new, known or mix
-- SPACE     the first digit of the spaces from which this run takes new numbers (see people.py)
-- FIRST     number of the first stored customer that this run may use
-- KNOWN     how many stored customers it may use
--
-- For one thread only, so that its counters cover everything that was sent. One thread of wrk builds and
-- sends several times as many requests as an aiohttp process answers.

local PRIME, EMAIL_START, PHONE_START = 29999999, 7000000, 19000000
local LAG = 1000 -- customers of this run count as known after so many later ones

local random, format = math.random, string.format
local workload, space, first, known
local head
local people = 0 -- new customers of this run
local fresh = 0 -- new identifiers of known customers
local joined = 0 -- customers that were merged, from the oldest on, in pairs, each once

sent = { known = 0, new = 0, extended = 0, joined = 0 } -- global, for done() to fetch from the thread

local threads = {}

function setup(thread)
  threads[#threads + 1] = thread
end

local function scattered(number, start)
  local value = (number + start) % PRIME
  return value * value % PRIME * value % PRIME
end

local function email(of, number)
  return format("c%08d-%s@shop.example", scattered(number, EMAIL_START), of)
end

local function phone(of, number)
  return format("+1%08d%s", scattered(number, PHONE_START), of)
end

local function post(said_email, said_phone)
  -- All emails are of one length and all phones are, so the head is always the same.
  return head .. said_email .. '","phoneNumber":"' .. said_phone .. '"}'
end

-- The space and number of the customer at this index: the stored ones first, then those of this run.
local function customer(place)
  if place <= known then
    return "00", first + place - 1
  end
  return space .. "0", place - known
end

-- How many customers are certainly stored, because their requests were answered long ago.
local function settled()
  return known + math.max(0, people - LAG)
end

local kinds = {}

function kinds.new()
  sent.new = sent.new + 1
  people = people + 1
  return post(email(space .. "0", people), phone(space .. "0", people))
end

function kinds.known()
  sent.known = sent.known + 1
  local of, number = customer(random(settled()))
  return post(email(of, number), phone(of, number))
end

function kinds.extended() -- a known email with a new phone, or the reverse
  sent.extended = sent.extended + 1
  fresh = fresh + 1
  local of, number = customer(random(settled()))
  if fresh % 2 == 0 then
    return post(email(of, number), phone(space .. "1", fresh))
  end
  return post(email(space .. "1", fresh), phone(of, number))
end

function kinds.joined() -- the email of one known customer, the phone of another
  if joined + 2 > settled() then
    return kinds.known()
  end
  sent.joined = sent.joined + 1
  local one_of, one = customer(joined + 1)
  local other_of, other = customer(joined + 2)
  joined = joined + 2
  return post(email(one_of, one), phone(other_of, other))
end

function kinds.mix()
  local dice = random()
  if dice < 0.70 then
    return kinds.known()
  elseif dice < 0.90 then
    return kinds.new()
  elseif dice < 0.98 then
    return kinds.extended()
  end
  return kinds.joined()
end

function init(args)
  workload, space, first, known = args[1], args[2], tonumber(args[3]), tonumber(args[4])
  math.randomseed(tonumber(space) * 1000003 + os.time())
  local start = '{"email":"'
  local length = #start + #email("00", 0) + #'","phoneNumber":"' + #phone("00", 0) + #'"}'
  head = table.concat({
    "POST " .. wrk.path .. " HTTP/1.1",
    "Host: " .. wrk.host .. ":" .. wrk.port,
    "Content-Type: application/json",
    "Content-Length: " .. length,
    "",
    start,
  }, "\r\n")
  local build = kinds[workload]
  -- wrk calls request() once to see whether it can be parsed, and sends nothing.
  request = function()
    request = build
    return post(email("00", 0), phone("00", 0))
  end
end

function request() end -- wrk checks for it before init has run

function done(summary, latency)
  local counted = threads[1]:get("sent")
  local errors = summary.errors
  io.write(format(
    '\nRESULT {"requests": %d, "seconds": %.6f, "p50_ms": %.3f, "p99_ms": %.3f, "statuses": %d, "sockets": %d, '
      .. '"sent": {"known": %d, "new": %d, "extended": %d, "joined": %d}}\n',
    summary.requests, summary.duration / 1e6,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000,
    errors.status, errors.connect + errors.read + errors.write + errors.timeout,
    counted.known, counted.new, counted.extended, counted.joined
  ))
end
