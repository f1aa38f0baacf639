"""Answers and what they are worth, by hand: (question, response, right by medevalkit, right by strict).

A question is (set, kind, answer, options). The first figure follows from the published rule step by step, quirks
included; the second from what a careful reader would say that the response states.
"""

from __future__ import annotations

from medvr_jax.datasets.example import Example

SKIN = ("Benign nevus", "Melanoma", "Basal cell carcinoma", "No lesion")
ZH_SKIN = ("痣", "黑色素瘤", "血管瘤", "正常皮肤")


def question(dataset: str, kind: str, answer: str, options: tuple[str, ...] = ()) -> Example:
    return Example("1", (), "?", options, answer, kind, dataset=dataset)


OMNI_A = question("omnimedvqa", "choice", "A", SKIN)
OMNI_B = question("omnimedvqa", "choice", "B", SKIN)
OMNI_ZH = question("omnimedvqa", "choice", "B", ZH_SKIN)
PMC_A = question("pmc_vqa", "choice", "A", SKIN)
PMC_B = question("pmc_vqa/v2", "choice", "B", SKIN)
XPERT_E = question("medxpertqa_mm", "choice", "E", ("Acne", "Burn", "Cyst", "Drusen", "Eczema"))
YES_NO_OPTIONS = question("omnimedvqa", "choice", "B", ("Yes", "No"))
SAME_OPTIONS = question("omnimedvqa", "choice", "A", ("Yes", "yes", "No"))
LETTER_OPTIONS = question("omnimedvqa", "choice", "A", ("B", "A"))
ROMAN_OPTIONS = question("omnimedvqa", "choice", "B", ("I", "II", "III"))
RAD_YES = question("vqa_rad", "yes_no", "yes")
RAD_NO = question("vqa_rad", "yes_no", "no")
PATH_NO = question("path_vqa", "yes_no", "no")
SLAKE_YES = question("slake/en", "yes_no", "Yes")
SLAKE_NO = question("slake/en", "yes_no", "No")
ZH_IS = question("slake/zh", "yes_no", "是")
ZH_IS_NOT = question("slake/zh", "yes_no", "不是")
ZH_HAS = question("slake/zh", "yes_no", "有")
ZH_HAS_NOT = question("slake/zh", "yes_no", "没有")
SLAKE_LEFT = question("slake", "closed", "Left")
SLAKE_X_RAY = question("slake", "closed", "X-Ray")
SLAKE_SIZE = question("slake", "closed", "1.5 cm")
SLAKE_LIST = question("slake", "closed", "Lung, Heart")
ZH_LUNG = question("slake/zh", "closed", "左肺")
RAD_LEFT = question("vqa_rad", "closed", "left")
RAD_OPEN = question("vqa_rad", "open", "Pleural effusion")
SLAKE_OPEN = question("slake", "open", "Pleural effusion")
PATH_OPEN = question("path_vqa", "open", "in the canals of Hering")
ZH_OPEN = question("slake/zh", "open", "左肺上叶")
OWN_YES = question("", "yes_no", "Yes")
OWN_CLOSED = question("", "closed", "Axial")
OWN_OPEN = question("", "open", "spleen")
OWN_CHOICE = question("", "choice", "D", SKIN)

CALL = '<tool_call>{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [1, 2, 3, 4]}}</tool_call>'

CHOICES = [
    # letters, in all dresses
    (OMNI_B, "B", 1, 1),
    (OMNI_B, "b", 1, 1),
    (OMNI_B, "B.", 1, 1),
    (OMNI_B, "(B)", 1, 1),
    (OMNI_B, "B)", 1, 1),
    (OMNI_B, " B :", 1, 1),
    (OMNI_B, "**B**", 1, 1),
    (OMNI_B, "`B`", 1, 1),
    (OMNI_B, "Option B", 1, 1),
    (OMNI_B, "B<|im_end|>", 1, 1),
    (OMNI_B, "\uff22", 0, 1),  # full width: no character in common with any option, so A is chosen
    (OMNI_A, "(A)", 0, 1),  # "(a)" is more like the shorter "b. melanoma", which has an a, than like A's text
    (OMNI_B, "A", 0, 0),
    (OMNI_B, "E", 1, 0),  # no such option; B is the shortest with an e
    (OMNI_B, "1", 0, 0),
    (XPERT_E, "E", 1, 1),
    (XPERT_E, "(E) Eczema", 1, 1),
    (XPERT_E, "D", 0, 0),
    # the option's text, with its letter and without
    (OMNI_B, "Melanoma", 1, 1),
    (OMNI_B, "MELANOMA", 1, 1),
    (OMNI_B, "melanoma.", 1, 1),
    (OMNI_B, "B. Melanoma", 1, 1),
    (OMNI_B, "B: Melanoma", 1, 1),
    (OMNI_B, "(b) melanoma", 1, 1),
    (OMNI_B, "B. Benign nevus", 1, 0),  # letter and text disagree
    (OMNI_B, "not melanoma", 1, 0),
    (OMNI_B, "A melanoma", 1, 0),  # an article
    (OMNI_B, "melanomas", 1, 0),
    (OMNI_B, "Basal cell carcinoma", 0, 0),
    (OMNI_A, "Basal  cell\ncarcinoma", 0, 0),
    (ROMAN_OPTIONS, "II", 1, 1),
    (LETTER_OPTIONS, "A", 1, 1),
    (SAME_OPTIONS, "Yes", 1, 0),  # two options say so
    (SAME_OPTIONS, "A", 1, 1),
    (YES_NO_OPTIONS, "No", 1, 1),
    (YES_NO_OPTIONS, "normal", 1, 0),
    (YES_NO_OPTIONS, "B. No", 1, 1),
    # several letters
    (OMNI_B, "AB", 0, 0),
    (OMNI_B, "A, B", 0, 0),
    (OMNI_B, "A or B", 0, 0),
    (OMNI_B, "A B C D", 0, 0),
    (OMNI_B, "Melanoma Benign nevus", 0, 0),
    (OMNI_B, "<answer>A</answer><answer>B</answer>", 0, 0),
    (OMNI_A, "<answer>A</answer> no: <answer>B</answer>", 1, 0),  # "a b"
    (OMNI_B, "<answer>B</answer><answer>B</answer>", 1, 0),
    (OMNI_B, "\\boxed{A} or \\boxed{B}", 1, 0),  # the last one
    (OMNI_B, "\\boxed{B}, yes, \\boxed{B}", 1, 1),
    # empty
    (OMNI_B, "", 0, 0),
    (OMNI_A, "", 1, 0),  # nothing is like no option, so the first
    (PMC_A, "", 1, 0),
    (OMNI_A, " \n ", 1, 0),
    (OMNI_B, "...", 1, 0),
    (OMNI_A, "()", 1, 0),
    (OMNI_B, "<answer></answer>", 0, 0),
    (OMNI_B, "<answer> </answer>B", 0, 0),
    (OMNI_B, "\\boxed{}", 0, 0),
    # tags, boxes, announcements
    (OMNI_B, "<answer>B</answer>", 1, 1),
    (OMNI_B, "<answer>\n B. Melanoma \n</answer>", 1, 1),
    (OMNI_B, "<think>A? C? The answer is A.</think><answer>B</answer>", 1, 1),
    (PMC_B, "<think>A? C?</think><answer>B</answer>", 1, 1),
    (PMC_B, "<think>It is boxed in.</think><answer>B</answer>", 0, 1),  # "boxed" without a box: "none", more like D
    (OMNI_B, "<Answer>B</Answer>", 1, 0),
    (OMNI_B, "\\boxed{B}", 1, 1),
    (OMNI_B, "$\\boxed{B}$.", 1, 1),
    (OMNI_B, "So it is \\boxed{\\text{Melanoma}}", 1, 1),
    (OMNI_B, "\\boxed{C}", 0, 0),
    (OMNI_B, "The answer is B", 1, 1),
    (OMNI_B, "The answer is B.", 1, 1),
    (OMNI_B, "The answer is: B", 1, 1),
    (OMNI_B, "Answer: B", 1, 1),
    (OMNI_B, "**Answer**: B", 1, 1),
    (OMNI_B, "**Answer:** B", 1, 1),
    (OMNI_B, "The margins are irregular. Final answer: B. Melanoma", 1, 1),
    (OMNI_B, "Answer: A\nAnswer: B", 1, 0),
    (OMNI_B, "Answer: B\n\nThe margins are irregular.", 0, 1),
    (OMNI_B, "The answer is not B", 1, 0),
    (OMNI_B, "B\n\nThe margins are irregular.", 1, 0),  # nothing says that the first line is the answer
    (OMNI_B, "The margins are irregular.\n\nB", 1, 0),
    (OMNI_B, "<think>the answer is B", 1, 0),  # cut off in a thought
    (OMNI_B, f"<think>B?</think>{CALL}", 0, 0),
    # Chinese
    (OMNI_B, "选B", 1, 1),
    (OMNI_B, "答案：B", 1, 1),
    (OMNI_B, "答案是B。", 1, 1),
    (OMNI_ZH, "黑色素瘤", 1, 1),
    (OMNI_ZH, "黑色素瘤。", 1, 1),
    (OMNI_ZH, "B、黑色素瘤", 1, 1),
    (OMNI_ZH, "血管瘤", 0, 0),
    # long
    (OMNI_B, "I see an irregular border. " * 200 + "The answer is B", 1, 1),
    (OMNI_B, "I see an irregular border. " * 200, 0, 0),
    # the set whose options carry no letters
    (PMC_B, "B", 1, 1),
    (PMC_B, "melanoma", 1, 1),
    (PMC_B, "B: Melanoma", 1, 1),
    (PMC_B, "benign nevus", 0, 0),
    (OWN_CHOICE, "d. no lesion", 1, 1),
    (OWN_CHOICE, "no", 1, 0),
]

YES_OR_NO = [
    (RAD_YES, "yes", 1, 1),
    (RAD_YES, "Yes.", 1, 1),
    (RAD_YES, "YES!", 1, 1),
    (RAD_YES, "Yes, on the left side", 1, 1),
    (RAD_YES, "no", 0, 0),
    (RAD_NO, "no", 1, 1),
    (PATH_NO, "No, it does.", 1, 1),
    (RAD_YES, "yes and no", 0, 0),
    (RAD_NO, "yes and no", 0, 0),
    (RAD_NO, "no, yes", 0, 0),
    (RAD_NO, "normal", 1, 0),  # holds "no"
    (RAD_YES, "normal", 0, 0),
    (RAD_YES, "Yes, it is normal.", 0, 1),  # holds both
    (RAD_NO, "No, the lung is normal.", 1, 1),
    (RAD_NO, "nothing", 1, 0),
    (RAD_NO, "not seen", 1, 0),
    (RAD_NO, "I cannot tell", 1, 0),
    (PATH_NO, "unknown", 1, 0),
    (RAD_NO, "There is no lesion", 1, 0),
    (RAD_YES, "yesterday", 1, 0),
    (RAD_YES, "Eyes", 1, 0),
    (RAD_YES, "maybe", 0, 0),
    (RAD_YES, "true", 0, 0),
    (RAD_NO, "n", 0, 0),
    (RAD_NO, "", 0, 0),
    (RAD_YES, "...", 0, 0),
    (RAD_NO, "<answer>no</answer>", 1, 1),
    (RAD_NO, "<answer>no</answer><answer>no</answer>", 1, 0),
    (RAD_YES, "<think>no fluid</think><answer>Yes</answer>", 1, 1),
    (RAD_YES, "<think>no fluid</think>\nYes", 0, 1),  # without tags the thoughts are read, too
    (RAD_YES, "\\boxed{Yes}", 1, 1),
    (RAD_NO, "boxed in, no", 0, 0),
    (RAD_NO, "The answer is no.", 1, 1),
    (RAD_YES, "是", 0, 1),
    (RAD_YES, "yes " * 1000, 1, 1),
    (OWN_YES, "yes", 1, 1),
    (OWN_YES, "Yes: eyes", 1, 1),
    # SLAKE's are capitalised, and so compared as whole texts
    (SLAKE_YES, "yes", 1, 1),
    (SLAKE_YES, "Yes.", 1, 1),
    (SLAKE_YES, "Yes, it is", 0, 1),
    (SLAKE_YES, " Yes", 0, 1),
    (SLAKE_NO, "No", 1, 1),
    (SLAKE_NO, "normal", 0, 0),
    (SLAKE_NO, "否", 0, 1),
    # Chinese
    (ZH_IS, "是", 1, 1),
    (ZH_IS, "是。", 0, 1),
    (ZH_IS, "是的", 0, 1),
    (ZH_IS, "<answer>是</answer>", 1, 1),
    (ZH_IS, "是的，在左侧", 0, 1),
    (ZH_IS, "Yes", 0, 1),
    (ZH_IS, "不是", 0, 0),
    (ZH_IS, "否", 0, 0),
    (ZH_IS, "是不是", 0, 0),
    (ZH_IS, "是否", 0, 0),
    (ZH_IS, "是或否", 0, 0),
    (ZH_IS_NOT, "不是", 1, 1),
    (ZH_IS_NOT, "不是的。", 0, 1),
    (ZH_IS_NOT, "否", 0, 1),
    (ZH_IS_NOT, "no", 0, 1),
    (ZH_IS_NOT, "是", 0, 0),
    (ZH_IS_NOT, "不是，是", 0, 0),
    (ZH_HAS_NOT, "没有", 1, 1),
    (ZH_HAS_NOT, "没有肿瘤", 0, 1),
    (ZH_HAS_NOT, "没有，这是正常的", 0, 1),
    (ZH_HAS_NOT, "无", 0, 1),
    (ZH_HAS_NOT, "不存在", 0, 1),
    (ZH_HAS_NOT, "有", 0, 0),
    (ZH_HAS_NOT, "有没有", 0, 0),
    (ZH_HAS_NOT, "没有或有", 0, 0),
    (ZH_HAS_NOT, "不是没有", 0, 0),
    (ZH_HAS_NOT, "无法判断", 0, 0),
    (ZH_HAS_NOT, "不知道", 0, 0),
    (ZH_HAS_NOT, "", 0, 0),
    (ZH_HAS, "有", 1, 1),
    (ZH_HAS, "有肿瘤", 0, 1),
    (ZH_HAS, "存在", 0, 1),
    (ZH_HAS, "有可能", 0, 0),
    (ZH_HAS, "没有", 0, 0),
]

TEXTS = [
    (SLAKE_LEFT, "Left", 1, 1),
    (SLAKE_LEFT, "LEFT.", 1, 1),
    (SLAKE_LEFT, "left lung", 0, 0),
    (SLAKE_LEFT, "Left\nRight", 0, 0),
    (SLAKE_LEFT, "The answer is left", 0, 1),  # " left"
    (SLAKE_LEFT, "<answer>left</answer>", 1, 1),
    (SLAKE_LEFT, "\\boxed{Left}", 1, 1),
    (SLAKE_LEFT, "", 0, 0),
    (SLAKE_X_RAY, "x-ray", 1, 1),
    (SLAKE_X_RAY, "X\u2013Ray", 0, 1),
    (SLAKE_X_RAY, "x ray", 0, 0),
    (SLAKE_SIZE, "1.5 cm", 1, 1),  # our one departure: never right there
    (SLAKE_SIZE, "15 cm", 0, 0),
    (SLAKE_LIST, "lung, heart", 1, 1),
    (SLAKE_LIST, "Lung,Heart", 0, 1),
    (SLAKE_LIST, "Heart, Lung", 0, 0),
    (ZH_LUNG, "左肺", 1, 1),
    (ZH_LUNG, "左肺。", 0, 1),
    (ZH_LUNG, "左 肺", 0, 1),
    (ZH_LUNG, "右肺", 0, 0),
    (ZH_LUNG, "答案：左肺", 0, 1),
    (RAD_LEFT, "left", 1, 1),
    (RAD_LEFT, "Left.", 0, 1),  # an open question there: full stops matter
    (OWN_CLOSED, "axial.", 1, 1),
    (OWN_CLOSED, "coronal", 0, 0),
    (RAD_OPEN, "pleural effusion", 1, 1),
    (RAD_OPEN, " Pleural Effusion\n", 1, 1),
    (RAD_OPEN, "Pleural effusion.", 0, 1),
    (RAD_OPEN, "left pleural effusion", 0, 0),
    (RAD_OPEN, "The answer is pleural effusion", 0, 1),
    (RAD_OPEN, "<think>fluid</think><answer>Pleural effusion</answer>", 1, 1),
    (RAD_OPEN, "", 0, 0),
    (RAD_OPEN, "effusion " * 500, 0, 0),
    (SLAKE_OPEN, "Pleural effusion", 1, 1),
    (SLAKE_OPEN, "Pleural effusion\n", 0, 1),
    (PATH_OPEN, "in the canals of hering", 1, 1),
    (PATH_OPEN, "canals of hering", 0, 0),
    (ZH_OPEN, "左肺上叶", 1, 1),
    (ZH_OPEN, "左肺", 0, 0),
    (OWN_OPEN, "Spleen", 1, 1),
    (OWN_OPEN, "...", 0, 0),
]

CASES = CHOICES + YES_OR_NO + TEXTS

# question, response, recall and F1 by medevalkit (sets of words), by strict (words as often as they stand there)
WORDS = [
    (RAD_OPEN, "pleural effusion", (1, 1), (1, 1)),
    (RAD_OPEN, "Pleural effusion.", (1 / 2, 1 / 2), (1, 1)),  # "effusion." is another word there
    (RAD_OPEN, "left pleural effusion", (1, 4 / 5), (1, 4 / 5)),
    (RAD_OPEN, "effusion effusion", (1 / 2, 2 / 3), (1 / 2, 1 / 2)),
    (RAD_OPEN, "pneumonia", (0, 0), (0, 0)),
    (RAD_OPEN, "", (0, 0), (0, 0)),
    (RAD_OPEN, "<answer>the effusion</answer>", (1 / 2, 1 / 2), (1 / 2, 1 / 2)),
    (PATH_OPEN, "the canals", (2 / 5, 4 / 7), (2 / 5, 4 / 7)),
    (ZH_OPEN, "左肺", (0, 0), (1 / 2, 2 / 3)),  # every Chinese character is a word
    (ZH_OPEN, "上叶，左肺", (0, 0), (1, 1)),
]
