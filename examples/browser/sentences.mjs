/**
 * Made-up sentences to search in, so that the page needs no data of others: `sentences(1000)`.
 *
 * Each joins a person, what the person did, and how or why. All things done go with all endings of their topic.
 */

const PEOPLE =
    "Priya|Our neighbour|Tomas|My aunt|A student|The twins|Wanjiru|An old friend|Mei|My brother|Two colleagues|Ahmed|" +
    "The new tenant|Olga|A retired teacher|Our cousin|Lucía|Someone in my street|Kwame|My grandfather|Ingrid|" +
    "A young couple|Ravi|My sister";

/** What people did, and how or why, by topic. */
const TOPICS = [
    [
        "baked a loaf of rye bread|roasted a chicken with lemon|cooked lentil soup|fried rice with vegetables|" +
            "made pancakes with apples|burned the onions|kneaded dough for pizza",
        "for six hungry guests|because the shop had closed|from an old family recipe|and forgot the salt|" +
            "on a stove with one working burner|before the children came home",
    ],
    [
        "fixed the dripping kitchen tap|unblocked the drain of the shower|replaced a cracked pipe under the sink|" +
            "bled the radiators|called a plumber for the boiler|mopped up the flooded bathroom|changed a worn washer",
        "before the water reached the carpet|and the bill went down|after watching a video about it|" +
            "with a borrowed wrench|on a Sunday night|since the landlord did not answer",
    ],
    [
        "planted tomatoes on the balcony|pruned the old apple tree|sowed carrots and beans|watered the dry roses|" +
            "pulled weeds out of the flower beds|raked the fallen leaves|built a compost heap",
        "in the first warm week of spring|to keep the slugs away|with help from a child next door|" +
            "after a month without rain|and picked the first fruit in August|early in the morning",
    ],
    [
        "cycled to work along the river|mended a flat tyre|oiled the chain of the bicycle|bought a second-hand bike|" +
            "rode up the steep pass without a break|locked the bike at the station|tried an electric bicycle",
        "in spite of the headwind|and saved the bus fare|wearing a bright helmet|on the new cycle path|" +
            "during the transport strike|with a small child in the seat behind",
    ],
    [
        "missed the last train|changed trains twice|booked a sleeper to the coast|waited an hour on the platform|" +
            "left an umbrella in the railway carriage|bought a return ticket|reserved a seat by the window",
        "because of a signal failure|on the way to a conference|with a heavy suitcase|and read a whole novel|" +
            "since all flights were cancelled|late on Friday",
    ],
    [
        "paid off the credit card|opened a savings account|asked the bank for a mortgage|made a monthly budget|" +
            "sold some shares|filed the tax return|lent money to a cousin",
        "before interest rates rose|and kept every receipt|after a talk with an adviser|to buy a small flat|" +
            "on the last possible day|and felt relieved",
    ],
    [
        "caught a bad cold|twisted an ankle|got a vaccination|went to the dentist with a toothache|" +
            "took tablets for high blood pressure|rested with a fever|had a blood test",
        "and stayed at home for three days|in the week before the holidays|on the advice of a doctor|" +
            "and felt better soon|at the clinic around the corner|without telling anyone",
    ],
    [
        "slept badly|lay awake until three|overslept|took a nap after lunch|dreamed of falling|" +
            "set three alarm clocks|went to bed at nine",
        "because of the noise outside|after too much coffee|in a strange hotel|and was tired all day|" +
            "before an important morning|with the window open",
    ],
    [
        "tracked down a bug in the login page|wrote a test for the parser|restarted the crashed server|" +
            "deleted the wrong database table|reviewed a large pull request|upgraded an old library|" +
            "restored the files from a backup",
        "minutes before the release|and explained it to the whole team|with the help of the logs|" +
            "while customers were waiting|late at night|and wrote down what went wrong",
    ],
    [
        "took pictures of a heron|bought a used camera|developed a black-and-white film|printed an album of portraits|" +
            "photographed the city at dusk|cleaned a dusty lens|won a prize for a landscape photo",
        "with a very long exposure|for a small exhibition|after a course at the evening school|" +
            "and shared it with the club|in soft autumn light|using a tripod",
    ],
    [
        "practised the violin|sang in a choir|learned three chords on the guitar|tuned the old piano|" +
            "went to a jazz concert|composed a short waltz|played drums in a band",
        "for the summer festival|although the neighbours complained|with a patient teacher|" +
            "and got a long applause|in a small church|every evening for a year",
    ],
    [
        "was caught in a thunderstorm|shovelled snow from the drive|watched hail break the greenhouse|" +
            "walked through thick fog|measured the rainfall|waited for the flood to go down|enjoyed a mild winter day",
        "without a coat|as the forecast had said|while the power was out|and took shelter in a barn|" +
            "for the first time in years|near the harbour",
    ],
    [
        "scored the winning goal|watched the football final|missed a penalty|trained the youth team|" +
            "cheered from the stands|refereed a match|joined a local club",
        "in the last minute|in front of a small crowd|on a muddy pitch|with a broken toe|" +
            "against the champions|and celebrated until midnight",
    ],
    [
        "lost a game of chess|learned the rules of bridge|solved the crossword|finished a puzzle of a thousand pieces|" +
            "played cards with friends|beat the computer at draughts|bought a board game",
        "after three hours|on a rainy weekend|by a clever trick|with some luck|beside the fire|and asked for a rematch",
    ],
    [
        "walked the dog in the park|adopted a stray cat|took a limping puppy to the vet|fed the rabbits|" +
            "taught the parrot a word|searched for a runaway kitten|brushed the long-haired dog",
        "before breakfast|with the help of the whole street|and gave it a treat|in spite of an allergy|" +
            "for a friend on holiday|after it had hidden under a car",
    ],
    [
        "saw the rings of Saturn|watched a shower of meteors|built a small telescope|visited the planetarium|" +
            "found the North Star|photographed an eclipse of the moon|listened to a talk about black holes",
        "far from the city lights|on a cold, clear night|with a class of schoolchildren|from the roof|" +
            "and could not stop talking about it|through thin clouds",
    ],
    [
        "painted the bedroom walls blue|put up new shelves|sanded the wooden floor|hung wallpaper in the hall|" +
            "insulated the attic|laid tiles in the kitchen|replaced the broken window pane",
        "over a long weekend|with a rented machine|to save on heating|and spilled paint on the stairs|" +
            "without hiring anyone|before winter came",
    ],
    [
        "moved into a bigger flat|packed forty boxes of books|carried a sofa up four floors|signed a new lease|" +
            "found an affordable room|gave the keys back to the landlord|looked at nine apartments",
        "closer to the school|with a rented van|after months of searching|in the middle of summer|" +
            "and met the neighbours at once|when the rent went up",
    ],
    [
        "passed the final exam|failed a chemistry test|wrote an essay about a poem|did the homework on the bus|" +
            "revised for the history paper|handed in the thesis|asked the professor for more time",
        "with the best mark of the year|after a night in the library|by a narrow margin|" +
            "thanks to a study group|and slept for twelve hours|two days late",
    ],
    [
        "learned Portuguese|translated a letter into Japanese|mixed up two German words|" +
            "practised French pronunciation|took a class in sign language|memorized fifty new words|" +
            "read a children's book in Swahili",
        "for a job abroad|with a dictionary|to talk to a grandmother|using flash cards|" +
            "and made everybody laugh|during the daily commute",
    ],
    [
        "applied for a job|prepared for an interview|asked the boss for a raise|resigned from the company|" +
            "started as an apprentice|was promoted to team leader|wrote a better CV",
        "at a hospital|and heard back within a week|after ten years in the same office|" +
            "with a trembling voice|on the first of May|in a shrinking industry",
    ],
    [
        "swam across the bay|learned to surf|sailed a small boat around the island|collected shells on the beach|" +
            "dived to an old wreck|got sunburned by the sea|built a castle of sand",
        "before the tide came in|in cold water|with a group of beginners|on the last day of the holiday|" +
            "while dolphins passed by|against strong currents",
    ],
    [
        "hiked to a mountain hut|climbed a rock face|lost the trail in the forest|put up a tent by a lake|" +
            "crossed a glacier|carried too much in the backpack|watched the sunrise from the summit",
        "with a local guide|before the weather turned|in worn-out boots|without a map|" +
            "and ate chocolate at the top|on the third day of the tour",
    ],
    [
        "repaired a cracked phone screen|charged the laptop with a solar panel|printed a spare part|" +
            "returned a faulty headset|soldered a loose wire|replaced the battery of a watch|set up a wireless router",
        "for half the price of a new one|with tools from the library|under warranty|in ten minutes|" +
            "and threw the packaging away|after reading the manual twice",
    ],
];

/**
 * Returns sentences, all different, in an order that depends on the seed.
 *
 * @param {number} count At most 1,008.
 * @param {number} [seed]
 * @returns {string[]}
 */
export function sentences(count, seed = 1) {
    const below = dice(seed);
    const people = PEOPLE.split("|");
    const made = TOPICS.flatMap(([acts, ends]) =>
        acts.split("|").flatMap((act) => ends.split("|").map((end) => `${people[below(people.length)]} ${act} ${end}.`)),
    );
    for (let at = made.length - 1; at > 0; at--) {
        const other = below(at + 1);
        [made[at], made[other]] = [made[other], made[at]];
    }
    return made.slice(0, count);
}

/**
 * Returns a function whose results are whole numbers below its argument: the same ones in every browser.
 *
 * @param {number} seed
 * @returns {(most: number) => number}
 */
function dice(seed) {
    let state = seed >>> 0;
    return (most) => {
        state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
        return Math.floor((state / 2 ** 32) * most);
    };
}
